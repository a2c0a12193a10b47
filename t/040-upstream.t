# upstream { amesh cluster=NAME; } on plain nginx.
use lib 't/lib';
use AmeshTest;
use Test::Nginx::Socket 'no_plan';

no_shuffle();
use_amesh();
run_tests();

__DATA__

=== TEST 1: the endpoints of the cluster, and the host that the server says
--- http_config
upstream both { amesh cluster=both; }
upstream one { amesh cluster=one; }
--- config
    location / { proxy_pass http://both; }
    location = /one { proxy_pass http://one; proxy_set_header Host as.configured; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /a", "GET /one"]
--- response_body_like eval
["^198[56] GET /a host=both\$", "^1985 GET /one host=as\\.configured\$"]


=== TEST 2: two requests use one upstream connection
--- http_config
upstream one { amesh cluster=one; }
--- config
    location / { proxy_pass http://one; proxy_http_version 1.1; proxy_set_header Connection ""; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /connection/", "GET /connection/", "GET /connection/"]
--- response_body eval
["1\n", "2\n", "3\n"]


=== TEST 3: a connection serves as many requests as the cluster says
--- http_config
upstream few { amesh cluster=few; }
--- config
    location / { proxy_pass http://few; proxy_http_version 1.1; proxy_set_header Connection ""; }
--- xds
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: few
type: STATIC
load_assignment: {cluster_name: few, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $TEST_NGINX_BACKEND_PORT}}}}]}]}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    common_http_protocol_options: {max_requests_per_connection: 2}
    explicit_http_config: {http_protocol_options: {}}
--- request eval
["GET /connection/", "GET /connection/", "GET /connection/"]
--- response_body eval
["1\n", "2\n", "1\n"]


=== TEST 4: the client's connection ends with the request, without keep-alive upstream
--- http_config
upstream one { amesh cluster=one; }
--- config
    location / { proxy_pass http://one; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /connection/", "GET /connection/"]
--- response_body eval
["1\n", "1\n"]


=== TEST 5: what the log says
--- http_config
upstream one { amesh cluster=one; }
log_format m 'c=$amesh_cluster e=$amesh_endpoint u=$upstream_addr f=$amesh_response_flags l=[$amesh_listener] a=$amesh_attempts';
--- config
    access_log $TEST_NGINX_SERVROOT/logs/access.log m;
    location / { proxy_pass http://one; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- access_log
c=one e=127.0.0.1:1985 u=127.0.0.1:1985 f=- l=[-] a=1


=== TEST 6: no such cluster is nginx's own 502
--- http_config
upstream gone { amesh cluster=gone; }
log_format m 'c=$amesh_cluster f=$amesh_response_flags';
--- config
    access_log $TEST_NGINX_SERVROOT/logs/access.log m;
    location / { proxy_pass http://gone; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- error_code_like: ^50[23]$
--- access_log
c=gone f=NC


=== TEST 7: bodies
--- http_config
upstream one { amesh cluster=one; }
--- config
    location / { proxy_pass http://one; proxy_http_version 1.1; proxy_set_header Connection ""; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["POST /length/\n" . ("x" x 100000), "GET /"]
--- response_body eval
["POST 100000\n", "1985 GET / host=one\n"]
