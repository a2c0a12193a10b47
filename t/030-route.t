# Routing of HTTP: what is matched, what goes upstream, what comes back.
use lib 't/lib';
use AmeshTest;
use Test::Nginx::Socket 'no_plan';

no_shuffle();
use_amesh(http => 1);
run_tests();

__DATA__

=== TEST 1: prefix, path and regular expression, the first one wins
--- routes
- match: {path: /exact}
  route: {cluster: two}
- match: {safe_regex: {regex: "/r[0-9]+/x"}}
  route: {cluster: two}
- match: {prefix: /exact}
  route: {cluster: one}
- match: {prefix: /r}
  route: {cluster: one}
--- request eval
["GET /exact", "GET /exact?q=1", "GET /exact/1", "GET /r12/x", "GET /r12/xy", "GET /R12/x"]
--- error_code eval
[200, 200, 200, 200, 200, 404]
--- response_body eval
["1986 GET /exact host=localhost\n", "1986 GET /exact?q=1 host=localhost\n", "1985 GET /exact/1 host=localhost\n",
 "1986 GET /r12/x host=localhost\n", "1985 GET /r12/xy host=localhost\n", ""]


=== TEST 2: a prefix with separator, and without regard to case
--- routes
- match: {path_separated_prefix: /api}
  route: {cluster: two}
- match: {prefix: /Case, case_sensitive: false}
  route: {cluster: one}
--- request eval
["GET /api", "GET /api/1", "GET /apis", "GET /cASE1"]
--- error_code eval
[200, 200, 404, 200]
--- response_body_like eval
["^1986 ", "^1986 ", "^\$", "^1985 "]


=== TEST 3: headers
--- routes
- match: {prefix: /, headers: [{name: x-a, string_match: {exact: "1"}}]}
  direct_response: {status: 200, body: {inline_string: exact}}
- match: {prefix: /, headers: [{name: x-b, present_match: true}, {name: x-c, present_match: false}]}
  direct_response: {status: 200, body: {inline_string: present}}
- match: {prefix: /, headers: [{name: x-n, range_match: {start: 10, end: 20}}]}
  direct_response: {status: 200, body: {inline_string: range}}
- match: {prefix: /, headers: [{name: ":method", string_match: {exact: PUT}}]}
  direct_response: {status: 200, body: {inline_string: method}}
- match: {prefix: /, headers: [{name: x-d, string_match: {prefix: ab, ignore_case: true}, invert_match: true}, {name: x-d, present_match: true}]}
  direct_response: {status: 200, body: {inline_string: inverted}}
- match: {prefix: /}
  direct_response: {status: 200, body: {inline_string: none}}
--- request eval
["GET /", "GET /", "GET /", "GET /", "GET /", "PUT /", "GET /", "GET /"]
--- more_headers eval
["X-A: 1", "X-B: 2", "X-B: 2\nX-C: 3", "X-N: 19", "X-N: 20", "X-A: 2", "X-D: xyz", "X-D: ABC"]
--- response_body eval
["exact", "present", "none", "range", "none", "method", "inverted", "none"]


=== TEST 4: query parameters
--- routes
- match: {prefix: /, query_parameters: [{name: v, string_match: {exact: "2"}}]}
  direct_response: {status: 200, body: {inline_string: two}}
- match: {prefix: /, query_parameters: [{name: debug, present_match: true}]}
  direct_response: {status: 200, body: {inline_string: debug}}
- match: {prefix: /}
  direct_response: {status: 200, body: {inline_string: none}}
--- request eval
["GET /?a=1&v=2", "GET /?v=22", "GET /?debug", "GET /?xdebug=1"]
--- response_body eval
["two", "none", "debug", "none"]


=== TEST 5: redirects
--- routes
- match: {prefix: /path}
  redirect: {path_redirect: /new}
- match: {prefix: /host}
  redirect: {host_redirect: other.example, response_code: FOUND}
- match: {prefix: /https}
  redirect: {https_redirect: true, response_code: PERMANENT_REDIRECT}
- match: {prefix: /pre/}
  redirect: {prefix_rewrite: /post/, response_code: TEMPORARY_REDIRECT}
- match: {prefix: /strip}
  redirect: {path_redirect: /s, strip_query: true, response_code: SEE_OTHER}
- match: {prefix: /port}
  redirect: {port_redirect: 8443}
--- request eval
["GET /path?a=1", "GET /host/x?a=1", "GET /https", "GET /pre/x?a=1", "GET /strip?a=1", "GET /port"]
--- error_code eval
[301, 302, 308, 307, 303, 301]
--- response_headers eval
["Location: http://localhost/new?a=1", "Location: http://other.example/host/x?a=1", "Location: https://localhost/https",
 "Location: http://localhost/post/x?a=1", "Location: http://localhost/s", "Location: http://localhost:8443/port"]
--- response_body eval
["", "", "", "", "", ""]


=== TEST 6: direct responses, with header edits of route and virtual host
--- vhost
response_headers_to_add: [{header: {key: x-vhost, value: "v"}}]
response_headers_to_remove: [x-none]
--- routes
- match: {path: /tea}
  direct_response: {status: 418, body: {inline_string: "short and stout\n"}}
  response_headers_to_add: [{header: {key: x-tea, value: "%REQ(x-kind)% at %REQ(:path)%"}}, {header: {key: x-host, value: "%REQ(:authority)%"}}]
- match: {path: /none}
  direct_response: {status: 204}
--- request eval
["GET /tea", "GET /none"]
--- more_headers
X-Kind: green
--- error_code eval
[418, 204]
--- response_body eval
["short and stout\n", ""]
--- response_headers eval
["X-Tea: green at /tea\nX-Host: localhost\nX-Vhost: v\nContent-Type: text/plain\nContent-Length: 16", "! X-Tea\nX-Vhost: v"]


=== TEST 7: edits of request and response headers
--- routes
- match: {prefix: /echo/}
  route: {cluster: one}
  request_headers_to_add:
  - {header: {key: x-a, value: added}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}
  request_headers_to_remove: [x-b]
- match: {prefix: /headers/}
  route: {cluster: one}
  response_headers_to_add:
  - {header: {key: x-up, value: two}, append_action: APPEND_IF_EXISTS_OR_ADD}
  response_headers_to_remove: [x-gone]
--- request eval
["GET /echo/", "GET /headers/"]
--- more_headers
X-A: client
X-B: client
--- response_body_like eval
[" a=added b= ", "^up\$"]
--- response_headers eval
["! X-Up", "X-Up: one, two\n! X-Gone"]


=== TEST 8: weights
--- routes
- match: {prefix: /a}
  route: {weighted_clusters: {clusters: [{name: one, weight: 100}, {name: two, weight: 0}]}}
- match: {prefix: /}
  route: {weighted_clusters: {clusters: [{name: one, weight: 0}, {name: two, weight: 100, request_headers_to_add: [{header: {key: x-a, value: arm}}]}]}}
--- request eval
[("GET /a") x 6, ("GET /b") x 6, "GET /echo/"]
--- response_body_like eval
[("^1985 ") x 6, ("^1986 ") x 6, " a=arm "]


=== TEST 9: path rewrites, and the path before
--- routes
- match: {prefix: /p/}
  route: {cluster: one, prefix_rewrite: /echo/}
- match: {safe_regex: {regex: "/x/.*"}}
  route: {cluster: one, regex_rewrite: {pattern: {regex: "^/x/([a-z]+)/([0-9]+)"}, substitution: '/\2/\1'}}
- match: {path: /one}
  route: {cluster: one, prefix_rewrite: /other}
--- request eval
["GET /p/a?q=1", "GET /x/abc/12?q=/x/abc/12", "GET /one?q"]
--- response_body_like eval
["original=/p/a\\?q=1 ", "^1985 GET /12/abc\\?q=/x/abc/12 ", "^1985 GET /other\\?q "]


=== TEST 10: what the connection manager adds
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- vhost
include_request_attempt_count: true
include_attempt_count_in_response: true
--- request eval
["GET /echo/", "GET /echo/", "GET /echo/"]
--- more_headers eval
["", "X-Request-Id: mine\nX-Forwarded-Proto: https", "X-Forwarded-Client-Cert: By=me"]
--- response_body_like eval
["^xfp=http xff= id=[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12} attempt=1 original= a= b= xfcc= conn= ",
 "^xfp=https xff= id=mine ", " xfcc= "]
--- response_headers_like eval
[("X-Envoy-Upstream-Service-Time: \\d+\nX-Envoy-Attempt-Count: 1\nServer: envoy") x 3]


=== TEST 11: the address of the client
--- hcm
use_remote_address: true
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /echo/
--- more_headers
X-Forwarded-Proto: https
X-Forwarded-For: 192.0.2.1
X-Request-Id: mine
--- response_body_like: ^xfp=http xff=192\.0\.2\.1,127\.0\.0\.1 id=[0-9a-f]{8}-


=== TEST 12: host rewrites
--- routes
- match: {prefix: /literal}
  route: {cluster: one, host_rewrite_literal: up.example}
- match: {prefix: /header}
  route: {cluster: one, host_rewrite_header: x-to}
- match: {prefix: /path}
  route: {cluster: one, host_rewrite_path_regex: {pattern: {regex: "^/path/([a-z]+).*"}, substitution: '\1.example'}}
- match: {prefix: /echo/}
  route: {cluster: one, host_rewrite_literal: up.example, append_x_forwarded_host: true}
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /literal", "GET /header", "GET /path/abc", "GET /as-is", "GET /echo/"]
--- more_headers
Host: client.example:8080
X-To: to.example
--- response_body_like eval
["host=up.example\$", "host=to.example\$", "host=abc.example\$", "host=client.example:8080\$", "fwdhost=client.example:8080\$"]


=== TEST 12a: the endpoint's own host
--- xds
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: named
type: STATIC
load_assignment: {cluster_name: named, endpoints: [{lb_endpoints: [{endpoint: {hostname: own.example, address: {socket_address: {address: 127.0.0.1, port_value: $TEST_NGINX_BACKEND_PORT}}}}]}]}
--- routes
- match: {prefix: /auto}
  route: {cluster: named, auto_host_rewrite: true}
- match: {prefix: /}
  route: {cluster: named}
--- request eval
["GET /auto", "GET /as-is"]
--- more_headers
Host: client.example
--- response_body_like eval
[qr/host=own\.example/, qr/host=client\.example/]


=== TEST 13: path normalisation is what the listener says
--- hcm
normalize_path: true
merge_slashes: true
--- routes
- match: {prefix: /a/b}
  route: {cluster: one}
- match: {prefix: /}
  direct_response: {status: 200, body: {inline_string: other}}
--- request eval
["GET /x/../a//b/./c", "GET /a%2Fb", "GET /a/%62"]
--- response_body eval
["1985 GET /a/b/c host=localhost\n", "other", "1985 GET /a/b host=localhost\n"]


=== TEST 14: without normalisation every byte is kept
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /a%2Fb//c/../d", "GET /%41%20?x=%2f+y", "GET //", "GET /a?"]
--- response_body eval
["1985 GET /a%2Fb//c/../d host=localhost\n", "1985 GET /%41%20?x=%2f+y host=localhost\n", "1985 GET // host=localhost\n", "1985 GET /a? host=localhost\n"]


=== TEST 15: escaped slashes as the listener wants them
--- hcm
normalize_path: true
path_with_escaped_slashes_action: REJECT_REQUEST
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /a%2Fb", "GET /a%5cb", "GET /a/b"]
--- error_code eval
[400, 400, 200]


=== TEST 16: nothing matches
--- http_config
log_format m '$status $amesh_listener vh=$amesh_virtual_host r=$amesh_route c=$amesh_cluster e=$amesh_endpoint f=$amesh_response_flags a=$amesh_attempts';
--- config
access_log $TEST_NGINX_SERVROOT/logs/access.log m;
--- routes
- match: {prefix: /a}
  route: {cluster: one}
--- request
GET /b
--- error_code: 404
--- response_body eval
""
--- response_headers
Server: envoy
--- access_log
404 web vh=- r=- c=- e=- f=NR a=0


=== TEST 17: no endpoint
--- http_config
log_format m '$status $amesh_listener vh=$amesh_virtual_host r=$amesh_route c=$amesh_cluster e=$amesh_endpoint f=$amesh_response_flags a=$amesh_attempts';
--- config
access_log $TEST_NGINX_SERVROOT/logs/access.log m;
--- routes
- name: empty
  match: {prefix: /}
  route: {cluster: empty}
--- request
GET /
--- error_code: 503
--- response_body eval
"no healthy upstream"
--- response_headers
Content-Type: text/plain
Server: envoy
--- access_log
503 web vh=all r=empty c=empty e=- f=UH a=1


=== TEST 18: no cluster
--- http_config
log_format m '$status $amesh_listener vh=$amesh_virtual_host r=$amesh_route c=$amesh_cluster e=$amesh_endpoint f=$amesh_response_flags a=$amesh_attempts';
--- config
access_log $TEST_NGINX_SERVROOT/logs/access.log m;
--- routes
- name: gone
  match: {prefix: /}
  route: {cluster: nowhere}
--- request
GET /
--- error_code: 503
--- response_body eval
""
--- access_log
503 web vh=all r=gone c=- e=- f=NC a=0


=== TEST 19: no cluster, with the code that the route says
--- routes
- match: {prefix: /}
  route: {cluster: nowhere, cluster_not_found_response_code: NOT_FOUND}
--- request
GET /
--- error_code: 404
--- response_body eval
""


=== TEST 20: a refused connection
--- http_config
log_format m '$status $amesh_listener vh=$amesh_virtual_host r=$amesh_route c=$amesh_cluster e=$amesh_endpoint f=$amesh_response_flags a=$amesh_attempts';
--- config
access_log $TEST_NGINX_SERVROOT/logs/access.log m;
--- routes
- name: down
  match: {prefix: /}
  route: {cluster: down}
--- request
GET /
--- error_code: 503
--- response_body eval
"upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"
--- response_headers
Content-Type: text/plain
Server: envoy
--- access_log
503 web vh=all r=down c=down e=127.0.0.1:1987 f=UF a=1


=== TEST 21: the next endpoint after a refused one
--- http_config
log_format m '$amesh_endpoint a=$amesh_attempts';
--- config
access_log $TEST_NGINX_SERVROOT/logs/attempts.log m;
add_header X-Attempts $amesh_attempts;
--- routes
- match: {prefix: /}
  route: {cluster: flaky, retry_policy: {retry_on: connect-failure, num_retries: 2}}
--- request eval
[("GET /flaky") x 8]
--- response_body eval
[("1985 GET /flaky host=localhost\n") x 8]


=== TEST 22: a connection that ends before the response
--- http_config
log_format m '$status $amesh_listener vh=$amesh_virtual_host r=$amesh_route c=$amesh_cluster e=$amesh_endpoint f=$amesh_response_flags a=$amesh_attempts';
--- config
access_log $TEST_NGINX_SERVROOT/logs/access.log m;
--- routes
- match: {prefix: /}
  route: {cluster: one, retry_policy: {retry_on: connect-failure, num_retries: 2}}
--- request
GET /reset/
--- error_code: 503
--- response_body_like: reset before headers\. reset reason: connection termination$
--- access_log
f=UC a=1


=== TEST 23: bodies go up, HEAD comes back
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["POST /length/\nabc", "PUT /length/\n\x{00}\x{01}", "HEAD /x", "DELETE /y"]
--- response_body eval
["POST 3\n", "PUT 2\n", "", "1985 DELETE /y host=localhost\n"]


=== TEST 24: the hosts of virtual hosts
--- xds
"@type": type.googleapis.com/envoy.config.listener.v3.Listener
name: web
address: {socket_address: {address: 127.0.0.1, port_value: $TEST_NGINX_SERVER_PORT}}
traffic_direction: OUTBOUND
bind_to_port: false
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: web
      route_config:
        name: inline
        virtual_hosts:
        - {name: exact, domains: ["a.example"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: exact}}}]}
        - {name: suffix, domains: ["*.example"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: suffix}}}]}
        - {name: prefix, domains: ["b.*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: prefix}}}]}
      http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
--- request eval
["GET /", "GET /", "GET /", "GET /", "GET /"]
--- more_headers eval
["Host: a.example", "Host: A.EXAMPLE", "Host: x.example", "Host: b.test", "Host: c.test"]
--- error_code eval
[200, 200, 200, 200, 404]
--- response_body eval
["exact", "exact", "suffix", "prefix", ""]


=== TEST 25: cookies, templates, virtual clusters, and bodies that are made for the request
--- vhost
virtual_clusters: [{name: users, headers: [{name: ":path", string_match: {prefix: /u/}}]}]
--- routes
- match: {prefix: /c, cookies: [{name: beta, string_match: {exact: "on"}}]}
  direct_response: {status: 200, body: {inline_string: beta}}
- match:
    path_match_policy:
      name: envoy.path.match.uri_template.uri_template_matcher
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig
        path_template: "/u/{name}/{rest=**}"
  route:
    cluster: one
    path_rewrite_policy:
      name: envoy.path.rewrite.uri_template.uri_template_rewriter
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig
        path_template_rewrite: "/{rest}/{name}"
  response_headers_to_add:
  - {header: {key: x-now, value: "%VIRTUAL_CLUSTER_NAME% %REQ(:path)%"}}
- match: {path: /f}
  direct_response:
    status: 200
    body: {inline_string: x}
    body_format: {content_type: text/html, text_format_source: {inline_string: "<%LOCAL_REPLY_BODY%> %PROTOCOL% %PATH(NQ)%"}}
- match: {path: /h}
  route: {cluster: one, path_rewrite: "/p/%REQ(x-to)%", host_rewrite: "%REQ(x-to)%.example"}
- match: {path: /302}
  direct_response: {status: 302}
- match: {prefix: /}
  direct_response: {status: 200, body: {inline_string: none}}
--- request eval
["GET /c", "GET /c", "GET /u/ann/a/b?q", "GET /f?q", "GET /h?q", "GET /302"]
--- more_headers eval
["Cookie: a=b; beta=on", "Cookie: beta=off", "", "", "X-To: there", ""]
--- error_code eval
[200, 200, 200, 200, 200, 302]
--- response_headers eval
["", "", "X-Now: users /a/b/ann?q", "Content-Type: text/html", "", "Location: http://localhost/302"]
--- response_body eval
["beta", "none", "1985 GET /a/b/ann?q host=localhost\n", "<x> HTTP/1.1 /f", "1985 GET /p/there?q host=there.example\n", ""]


=== TEST 26: headers that only the mesh may set
--- xds
"@type": type.googleapis.com/envoy.config.listener.v3.Listener
name: web
address: {socket_address: {address: 127.0.0.1, port_value: $TEST_NGINX_SERVER_PORT}}
traffic_direction: OUTBOUND
bind_to_port: false
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: web
      route_config:
        name: inline
        internal_only_headers: [x-mesh]
        virtual_hosts:
        - name: a
          domains: ["*"]
          require_tls: EXTERNAL_ONLY
          routes: [{match: {prefix: /}, direct_response: {status: 200}}]
        - name: b
          domains: [b.example]
          routes:
          - {match: {prefix: /, headers: [{name: x-mesh}]}, direct_response: {status: 200, body: {inline_string: inside}}}
          - {match: {prefix: /}, direct_response: {status: 200, body: {inline_string: outside}}}
      http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
--- request eval
["GET /", "GET /"]
--- more_headers eval
["X-Envoy-Internal: true", "Host: b.example\nX-Envoy-Internal: true\nX-Mesh: 1"]
--- error_code eval
[301, 200]
--- response_body eval
["", "outside"]
