# resty.amesh on nginx's Lua module: what the mesh has.
use lib 't/lib';
use AmeshTest;
use Test::Nginx::Socket 'no_plan';

no_shuffle();
use_amesh(lua => 1);
run_tests();

__DATA__

=== TEST 1: names and versions
--- config
    location / { content_by_lua_block {
        local amesh = require "resty.amesh"
        for _, kind in ipairs { "listener", "route_table", "cluster", "endpoints" } do
            local names, versions = amesh.names(kind)
            ngx.say(kind, ": ", table.concat(names, " "))
            for i, name in ipairs(names) do
                assert(versions[i] == amesh.version_of(kind, name))
                assert(versions[i] > 0 and versions[i] <= amesh.version())
            end
        end
        ngx.say(amesh.ready(), " ", amesh.stats().slots)
    } }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- response_body
listener: web
route_table: web-routes
cluster: both down empty flaky one two
endpoints: both down empty flaky one two
true 16


=== TEST 2: what is not there, and what makes no sense
--- config
    location / { content_by_lua_block {
        local amesh = require "resty.amesh"
        ngx.say(amesh.version_of("cluster", "none"))
        ngx.say(pcall(amesh.names, "clusters"))
    } }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- response_body_like
^nilnot found
false.*no such kind of resource: "clusters", it is "listener", "route_table", "cluster" or "endpoints"


=== TEST 3: a decision on a request that nobody has sent, by a route table
--- http_config
    init_by_lua_block {
        -- A table as text, keys in their order.
        function text(t)
            if type(t) ~= "table" then
                return tostring(t)
            end
            local keys, all = {}, {}
            for key in pairs(t) do keys[#keys + 1] = key end
            table.sort(keys)
            for i, key in ipairs(keys) do all[i] = (type(key) == "number" and "" or key .. "=") .. text(t[key]) end
            return "{" .. table.concat(all, " ") .. "}"
        end
    }
--- config
    location / { content_by_lua_block {
        local amesh = require "resty.amesh"
        local d = assert(amesh.decide { table = "web-routes", authority = "a.example", path = "/api/x?q=1", headers = { ["X-A"] = "1" } })
        d.version = nil
        ngx.say(text(d))
        for _, path in ipairs { "/old/x", "/direct", "/gone", "/none" } do
            local d = amesh.decide { table = "web-routes", authority = "a.example", path = path }
            ngx.say(path, ": ", d.action, " ", d.status, " ", d.location, " ", d.body, " ", d.flags, " ", d.cluster)
        end
    } }
--- routes
- match: {prefix: /api, headers: [{name: x-a, string_match: {exact: "1"}}]}
  name: api
  route: {cluster: one, timeout: 5s, prefix_rewrite: /v1, retry_policy: {retry_on: "5xx,reset", num_retries: 3, per_try_timeout: 1s}}
  request_headers_to_add: [{header: {key: x-b, value: "%REQ(x-a)%2"}}]
  request_headers_to_remove: [x-a]
  response_headers_to_add: [{header: {key: x-c, value: "3"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
- match: {prefix: /old}
  redirect: {prefix_rewrite: /new}
- match: {path: /direct}
  direct_response: {status: 418, body: {inline_string: tea}}
- match: {path: /gone}
  route: {cluster: gone}
- match: {prefix: /empty}
  route: {cluster: empty}
--- request
GET /
--- response_body eval
"{action=forward address=127.0.0.1 authority=a.example cluster=one connect_timeout=2000 delay=0 endpoint=127.0.0.1:$ENV{TEST_NGINX_BACKEND_PORT} flags=- grpc=false http=1 idle_timeout=300000 max_stream_duration=0 path=/v1/x?q=1 per_try_idle_timeout=0 per_try_timeout=1000 port=$ENV{TEST_NGINX_BACKEND_PORT} "
. "request_headers={{name=x-a op=remove} {name=x-forwarded-proto op=set value=http} {name=x-envoy-expected-rq-timeout-ms op=set value=1000} {name=x-b op=set value=2} {name=x-envoy-original-path op=set value=/api/x?q=1}} "
. "response_headers={{name=x-c op=set value=3}} retries=3 retry_on=5xx,reset route=api timeout=5000 virtual_host=all}\n"
. "/old/x: redirect 301 http://a.example/new/x  - nil\n/direct: respond 418 nil tea - nil\n/gone: respond 503 nil  NC nil\n/none: respond 404 nil  NR nil\n"


=== TEST 4: resources as tables, which stay the same while nothing changes
--- config
    location / { content_by_lua_block {
        local amesh = require "resty.amesh"
        local cluster, version = amesh.get("cluster", "both")
        ngx.say(cluster.name, " ", cluster.connect_timeout, " ", cluster.discovery, " ", cluster.lb_policy, " ", version == amesh.version_of("cluster", "both"))
        local endpoints = amesh.get("endpoints", "both").localities[1].endpoints
        ngx.say(#endpoints, " ", endpoints[1].address, " ", endpoints[1].weight, " ", endpoints[1].health)
        local host = amesh.get("route_table", "web-routes").virtual_hosts[1]
        ngx.say(host.name, " ", host.routes[1].matches.path.prefix, " ", host.routes[1].action.route.cluster.cluster)
        ngx.say(host.routes[2].action.direct_response.body, " ", host.routes[2].action.direct_response.status)
        ngx.say(amesh.get("listener", "web").addresses[1])
        ngx.say(amesh.get("cluster", "both") == cluster, " ", amesh.get("cluster", "none"))
        local seen = {}
        for name, value, version in amesh.each "cluster" do seen[#seen + 1] = name .. "=" .. value.name .. (version > 0 and "" or "?") end
        ngx.say(table.concat(seen, " "))
    } }
--- routes
- match: {prefix: /a}
  route: {cluster: one}
- match: {prefix: /b}
  direct_response: {status: 200, body: {inline_string: "text of b"}}
--- request
GET /
--- response_body eval
"both 2000 static round_robin true\n2 127.0.0.1:$ENV{TEST_NGINX_BACKEND_PORT} 1 healthy\nall /a one\ntext of b 200\n"
. "127.0.0.1:$ENV{TEST_NGINX_SERVER_PORT}\ntrue nilnot found\nboth=both down=down empty=empty flaky=flaky one=one two=two\n"


=== TEST 5: a listener is found by its address, by its name, or not at all
--- config
    location / { content_by_lua_block {
        local amesh = require "resty.amesh"
        local function say(d, why)
            ngx.say(d and (d.listener .. " " .. d.action .. " " .. (d.cluster or d.status)) or why)
        end
        local here = "127.0.0.1:" .. ngx.var.server_port
        say(amesh.decide { path = "/a", destination = here })
        say(amesh.decide { path = "/a", listener = "web" })
        say(amesh.decide { path = "/c", listener = "web" })
        say(amesh.decide { path = "/a", listener = "none" })
        say(amesh.decide { path = "/a", table = "none" })
        say(amesh.decide { path = "/a", destination = "here" })
        say(amesh.decide { listener = "web" })
        say(amesh.decide { table = "web-routes", into = { listener = "" } } and { listener = "into", action = "a", status = 1 })
        local d = amesh.decide { path = "/a", destination = "127.0.0.9:1" }
        ngx.say(d.status, d.flags)
        for _, opts in ipairs { { method = "GET" }, { path = 1 }, { pat = "/" }, { table = "a", listener = "b" }, { path = "/", headers = "x: y" }, { path = "/", tls = 1 } } do
            ngx.say((select(2, pcall(amesh.decide, opts)):gsub("^.-lua:%d+: ", "")))
        end
    } }
--- routes
- match: {prefix: /a}
  route: {cluster: one}
- match: {path: /}
  route: {cluster: two}
--- request
GET /
--- response_body
web forward one
web forward one
web respond 404
no listener "none"
no route table "none"
"destination" and "source" are "ip:port", and texts are UTF-8
web forward two
into a 1
404NR
with option "method" another request is asked about: give its "path", too
option "path" is a text, and not 1
unknown option "pat"
options "table" and "listener" are not together
option "headers" is a table of names and values, and not "x: y"
option "tls" is true or false, and not 1


=== TEST 6: where there is no request, and where there is no zone yet
--- http_config
    init_by_lua_block {
        local amesh = require "resty.amesh"
        in_init = select(2, amesh.version())
    }
    init_worker_by_lua_block {
        local amesh = require "resty.amesh"
        in_worker = amesh.version() > 0 and select(2, amesh.decide()) or "no version"
        ngx.timer.at(0, function()
            in_timer = { select(2, amesh.decide()), select(2, amesh.balancer.pick("one")), select(2, amesh.route()),
                amesh.decide { path = "/", table = "web-routes" }.cluster }
        end)
    }
--- config
    location / { content_by_lua_block {
        ngx.say(in_init)
        ngx.say(in_worker)
        for _ = 1, 50 do
            if in_timer then break end
            ngx.sleep(0.02)
        end
        ngx.say(table.concat(in_timer, "\n"))
    } }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- response_body
the zone cannot be read in init_by_lua*: use init_worker_by_lua* or later
amesh.decide without "path" needs a request, and there is none in init_worker*: give "path" and what else the request has
amesh.decide without "path" needs a request, and there is none in timer*: give "path" and what else the request has
an endpoint is picked in balancer_by_lua*, and not in timer*
amesh.route decides in rewrite_by_lua* and access_by_lua*, and not in timer*
one


=== TEST 7: a new VM for each request
--- http_config
    lua_code_cache off;
    upstream lua { server 0.0.0.1; balancer_by_lua_block { require("resty.amesh").balancer.run("one") } }
--- config
    location / { content_by_lua_block {
        local amesh = require "resty.amesh"
        ngx.say(amesh.decide { path = "/", table = "web-routes" }.cluster, " ", amesh.get("cluster", "one").name)
    } }
    location /lua { proxy_pass http://lua; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /", "GET /", "GET /lua"]
--- response_body_like eval
["^one one\$", "^one one\$", "GET /lua"]


=== TEST 8: health, and what was counted
--- http_config
    upstream lua { server 0.0.0.1; balancer_by_lua_block { require("resty.amesh").balancer.run(ngx.var.arg_c) } }
--- config
    location /to { proxy_pass http://lua; }
    location / { content_by_lua_block {
        local amesh = require "resty.amesh"
        local health = amesh.health("one")
        local e = health.endpoints[1]
        ngx.say(#health.endpoints, " ", e.address, " ", e.health, " ", e.rq_total, " ", e.rq_active, " ", e.rq_error, " ", health.rq_total)
        e = amesh.health("down").endpoints[1]
        ngx.say(e.rq_total, " ", e.rq_active, " ", e.cx_connect_fail)
        ngx.say(amesh.health("none"))
    } }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /to?c=one", "GET /to?c=one", "GET /to?c=down", "GET /"]
--- error_code eval
[200, 200, 502, 200]
--- response_body_like eval
["GET /to", "GET /to", "502", "^1 127.0.0.1:$ENV{TEST_NGINX_BACKEND_PORT} healthy 2 0 0 2\n1 0 1\nnilnot found\n\$"]


=== TEST 9: a change
--- http_config
    init_worker_by_lua_block {
        local amesh = require "resty.amesh"
        seen = {}
        assert(amesh.on_change(function() error("on purpose") end))
        assert(amesh.on_change(function(version, before) seen[#seen + 1] = { before, version, amesh.get("cluster", "new") } end))
    }
--- config
    location / { content_by_lua_block {
        local amesh = require "resty.amesh"
        local before = amesh.version()
        ngx.sleep(0.3)
        ngx.say(#seen)
        local file = assert(io.open("$TEST_NGINX_HTML_DIR/xds/new.yaml", "w"))
        file:write('"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: new\ntype: STATIC\nload_assignment: {cluster_name: new}\n')
        file:close()
        for _ = 1, 100 do
            if #seen > 0 then break end
            ngx.sleep(0.05)
        end
        ngx.say(#seen, " ", seen[1][1] == before, " ", seen[1][2] == amesh.version(), " ", seen[1][3].name)
    } }
--- timeout: 10
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- response_body
0
1 true true new
--- error_log
a function given to amesh.on_change failed: init_worker_by_lua(nginx.conf:42):4: on purpose
