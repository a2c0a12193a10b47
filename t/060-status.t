# amesh_status: for people, for Prometheus, for probes.
use lib 't/lib';
use AmeshTest;
use Test::Nginx::Socket 'no_plan';

no_shuffle();
use_amesh();
run_tests();

__DATA__

=== TEST 1: JSON names every resource
--- config
    location /status { amesh_status; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /status
--- response_headers
Content-Type: application/json
--- response_body_like eval
qr/\A\{.*"clusters": \{.*"both": \{[^}]*"endpoints": \[\s*\{\s*"address": "127\.0\.0\.1:1985",.*"health": "healthy",.*"listeners": \{\s*"web": \d+\s*\},\s*"route_tables": \{\s*"web-routes": \d+\s*\}.*\}\n\z/s


=== TEST 2: requests are counted
--- http_config
upstream one { amesh cluster=one; }
--- config
    location / { proxy_pass http://one; }
    location /status { amesh_status; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /", "GET /", "GET /status/metrics"]
--- response_body_like eval
["^1985", "^1985", qr/^amesh_cluster_upstream_rq_total\{cluster="one"\} 2\n.*^amesh_endpoint_rq_total\{cluster="one",endpoint="127\.0\.0\.1:1985"\} 2$/ms]


=== TEST 3: metrics are Prometheus text
--- config
    location /status { amesh_status; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /status/metrics
--- response_headers
Content-Type: text/plain; version=0.0.4
--- response_body_like eval
qr/\A(?:amesh_[a-z_]+(?:\{[a-z_]+="[^"\n]*"(?:,[a-z_]+="[^"\n]*")*\})? \d+\n|# [^\n]*\n)+\z/


=== TEST 4: ready and live
--- config
    location /status { amesh_status; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /status/ready", "GET /status/live", "HEAD /status/ready"]
--- response_body eval
["ready\n", "live\n", ""]


=== TEST 5: other methods are not allowed
--- config
    location /status { amesh_status; }
--- request
POST /status
x
--- error_code: 405


=== TEST 6: a refused connection is counted as such
--- http_config
upstream down { amesh cluster=down; }
--- config
    location / { proxy_pass http://down; }
    location /status { amesh_status; }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /", "GET /status/metrics"]
--- error_code eval
[502, 200]
--- response_body_like eval
["502", qr/^amesh_endpoint_cx_connect_fail\{cluster="down",endpoint="127\.0\.0\.1:1987"\} 1$/m]
