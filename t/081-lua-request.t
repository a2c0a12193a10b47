# resty.amesh on live requests: what becomes of them, and balancers.
use lib 't/lib';
use AmeshTest;
use Test::Nginx::Socket 'no_plan';

no_shuffle();
add_block_preprocessor(sub {
    my ($block) = @_;
    $block->set_value('http_config', <<'END' . ($block->http_config // ''));
    upstream lua { server 0.0.0.1; balancer_by_lua_block { require("resty.amesh").balancer.run() } }
    log_format m 'c=$amesh_cluster e=$amesh_endpoint r=$amesh_route f=$amesh_response_flags a=$amesh_attempts u=[$upstream_addr] s=$status';
END
});
use_amesh(lua => 1);
run_tests();

__DATA__

=== TEST 1: routed and balanced by Lua as by the module
--- config
    access_log $TEST_NGINX_SERVROOT/logs/access.log m;
    location / {
        access_by_lua_block { assert(require("resty.amesh").route()) }
        proxy_pass http://lua;
        proxy_http_version 1.1;
        proxy_set_header Host $amesh_upstream_host;
        proxy_set_header Connection "";
    }
--- routes
- match: {prefix: /a}
  name: first
  route: {cluster: one, prefix_rewrite: /b, host_rewrite_literal: new.host}
  response_headers_to_add: [{header: {key: x-c, value: "%REQ(:path)%"}}]
- match: {prefix: /old}
  redirect: {prefix_rewrite: /new}
- match: {path: /direct}
  direct_response: {status: 418, body: {inline_string: tea}}
- match: {prefix: /empty}
  route: {cluster: empty}
- match: {prefix: /gone}
  route: {cluster: gone}
--- request eval
["GET /a/x?q=1", "GET /old", "GET /direct", "GET /none", "GET /empty", "GET /gone"]
--- error_code eval
[200, 301, 418, 404, 503, 503]
--- response_body eval
["$ENV{TEST_NGINX_BACKEND_PORT} GET /b/x?q=1 host=new.host\n", "", "tea", "", "no healthy upstream", ""]
--- response_headers eval
["x-c: /b/x?q=1", "location: http://localhost/new", "", "", "", ""]
--- access_log
r=first f=- a=1 u=[127.0.0.1:


=== TEST 2: tries by the policy, at another endpoint
--- config
    access_log $TEST_NGINX_SERVROOT/logs/access.log m;
    location / {
        access_by_lua_block { assert(require("resty.amesh").route()) }
        proxy_pass http://lua;
        proxy_set_header Host $amesh_upstream_host;
    }
    location = /state { content_by_lua_block {
        local down, up = 0, 0
        for _, e in ipairs(require("resty.amesh").health("flaky").endpoints) do
            assert(e.rq_active == 0, "something is held")
            if e.address == "127.0.0.1:$TEST_NGINX_CLOSED_PORT" then down = e.rq_total - e.cx_connect_fail else up = e.rq_total end
        end
        ngx.say(down, " ", up)
    } }
--- routes
- match: {prefix: /retried}
  route: {cluster: flaky, retry_policy: {retry_on: connect-failure, num_retries: 3, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}], host_selection_retry_max_attempts: 5}}
- match: {prefix: /}
  route: {cluster: flaky}
--- request eval
["GET /retried", "GET /retried", "GET /retried", "GET /retried", "GET /state"]
--- response_body_like eval
[("^$ENV{TEST_NGINX_BACKEND_PORT} GET /retried") x 4, "^0 4\$"]
--- access_log eval
"a=2 u=[127.0.0.1:$ENV{TEST_NGINX_CLOSED_PORT}, 127.0.0.1:$ENV{TEST_NGINX_BACKEND_PORT}] s=200"


=== TEST 3: a response is not taken, after a pause there is another try, and then no more
--- config
    access_log $TEST_NGINX_SERVROOT/logs/access.log m;
    location / {
        access_by_lua_block { assert(require("resty.amesh").route()) }
        proxy_pass http://lua;
        proxy_set_header Host $amesh_upstream_host;
    }
--- routes
- match: {prefix: /}
  route: {cluster: one, retry_policy: {retry_on: "retriable-status-codes", retriable_status_codes: [200], num_retries: 2}}
--- request
GET /x
--- response_body_like: GET /x
--- access_log
f=URX a=3


=== TEST 4: without a policy there is one try
--- config
    access_log $TEST_NGINX_SERVROOT/logs/access.log m;
    location / {
        access_by_lua_block { assert(require("resty.amesh").route()) }
        proxy_pass http://lua;
    }
--- routes
- match: {prefix: /}
  route: {cluster: down}
--- request
GET /
--- error_code: 503
--- response_body: upstream connect error or disconnect/reset before headers. reset reason: remote connection failure
--- access_log
f=UF a=1


=== TEST 5: what is asked about a request before, and told of it after it was decided
--- config
    location / {
        access_by_lua_block {
            local amesh = require "resty.amesh"
            local function few(d) return d.route .. " " .. d.cluster .. " " .. d.path .. " " .. d.endpoint .. " " .. d.timeout end
            local d = assert(amesh.decide())
            assert(d.request_headers[1].name == "x-forwarded-proto", d.request_headers[1].name)
            -- Nothing was changed by it.
            assert(not ngx.req.get_headers()["x-forwarded-proto"] and ngx.var.request_uri == "/a/x")
            ngx.ctx.before = few(d)
            ngx.ctx.other = amesh.decide { table = "web-routes" }.cluster
            assert(amesh.route())
            ngx.ctx.after = few(amesh.decide())
        }
        content_by_lua_block {
            ngx.say(ngx.ctx.before)
            ngx.say(ngx.ctx.before == ngx.ctx.after, " ", ngx.ctx.other, " ", ngx.req.get_headers()["x-forwarded-proto"])
        }
    }
--- routes
- match: {prefix: /a}
  name: first
  route: {cluster: one, prefix_rewrite: /b, timeout: 3s}
--- request
GET /a/x
--- response_body eval
"first one /b/x 127.0.0.1:$ENV{TEST_NGINX_BACKEND_PORT} 3000\ntrue one http\n"


=== TEST 6: phases that it is not for
--- config
    location / { content_by_lua_block {
        local amesh = require "resty.amesh"
        ngx.say(select(2, amesh.route()))
        ngx.say(select(2, amesh.balancer.pick("one")))
    } }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- response_body
amesh.route decides in rewrite_by_lua* and access_by_lua*, and not in content*
an endpoint is picked in balancer_by_lua*, and not in content*


=== TEST 7: a balancer without a route
--- config
    location / { proxy_pass http://lua; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- error_code: 502
--- error_log
amesh: no endpoint: the request has no route: decide it by amesh.route(), or name a cluster


=== TEST 8: a balancer of a cluster that is not there
--- http_config
    upstream bare { server 0.0.0.1; balancer_by_lua_block { require("resty.amesh").balancer.run("none") } }
--- config
    location / { proxy_pass http://bare; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- error_code: 502
--- error_log
amesh: no endpoint: no such cluster


=== TEST 9: a balancer of a cluster without endpoints, and of another one then
--- http_config
    upstream bare { server 0.0.0.1; balancer_by_lua_block {
        local amesh = require "resty.amesh"
        local address, why = amesh.balancer.pick("empty")
        ngx.log(ngx.WARN, "balancer: ", address, " ", why)
        assert(amesh.balancer.set_current_peer("both"))
    } }
--- config
    location / { proxy_pass http://bare; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- response_body_like: GET /
--- error_log
balancer: nil no healthy upstream


=== TEST 10: a fault's pause, and a body that is sent twice
--- filters
- name: envoy.filters.http.fault
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, delay: {fixed_delay: 0.2s, percentage: {numerator: 100}}}
--- config
    access_log $TEST_NGINX_SERVROOT/logs/access.log m;
    location / {
        access_by_lua_block { assert(require("resty.amesh").route().delay == 200) }
        proxy_pass http://lua;
    }
--- routes
- match: {prefix: /}
  route: {cluster: one, retry_policy: {retry_on: "retriable-status-codes", retriable_status_codes: [200], num_retries: 1}}
--- request eval
"POST /length/\n" . ("x" x 1000)
--- response_body
POST 1000
--- access_log
f=DI,URX a=2


=== TEST 11: a server that has a word of its own
--- config
    amesh outbound;
    location / {
        access_by_lua_block {
            local amesh = require "resty.amesh"
            ngx.ctx.asked = amesh.decide()
            ngx.ctx.why = select(2, amesh.route())
        }
        content_by_lua_block {
            local told = require("resty.amesh").decide()
            for _, name in ipairs { "listener", "virtual_host", "route", "cluster", "endpoint", "authority", "path", "timeout", "retry_on" } do
                assert(told[name] == ngx.ctx.asked[name], name)
            end
            ngx.say(told.route, " ", told.path, " ", ngx.var.amesh_cluster, " ", ngx.ctx.why)
        }
    }
--- routes
- match: {prefix: /a}
  name: first
  route: {cluster: one, prefix_rewrite: /b, timeout: 3s, retry_policy: {retry_on: reset}}
--- request
GET /a/x
--- response_body
first /b/x one this server has an "amesh" of its own, or this is a subrequest: what the module decides is told by amesh.decide


=== TEST 12: who only asks takes nothing
--- filters
- name: envoy.filters.http.local_ratelimit
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
    stat_prefix: limit
    token_bucket: {max_tokens: 1, fill_interval: 3600s}
    filter_enabled: {default_value: {numerator: 100}}
    filter_enforced: {default_value: {numerator: 100}}
--- config
    location / {
        access_by_lua_block {
            local amesh = require "resty.amesh"
            local asked = {}
            for i = 1, 3 do asked[i] = tostring(amesh.decide().status) end
            ngx.header["x-asked"] = table.concat(asked, " ")
            assert(amesh.route())
        }
        proxy_pass http://lua;
    }
    location = /state { content_by_lua_block { ngx.say(require("resty.amesh").health("one").endpoints[1].rq_total) } }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /", "GET /", "GET /state"]
--- error_code eval
[200, 429, 200]
--- response_headers eval
["x-asked: nil nil nil", "x-asked: 429 429 429", ""]
--- response_body_like eval
["GET /", "local_rate_limited", "^1\$"]
