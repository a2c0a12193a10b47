# What must not be left out and is not supported is refused, and said once.
use lib 't/lib';
use AmeshTest;
use Test::Nginx::Socket 'no_plan';

no_shuffle();
# What is refused is said once: the second time each block is asked, the log has no line.
repeat_each(2);
use_amesh(http => 1);
run_tests();

__DATA__

=== TEST 1: RBAC
--- filters
- name: envoy.filters.http.rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules: {action: ALLOW, policies: {}}
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- error_code: 500
--- response_body eval
""
--- grep_error_log eval
qr/amesh: "web" is refused: .*envoy\.filters\.http\.rbac/
--- grep_error_log_out eval
[qq{amesh: "web" is refused: filter_chains[0].filters[0].typed_config.http_filters[0]: "envoy.filters.http.rbac\n}, ""]


=== TEST 2: a filter that may be left out is left out
--- filters
- name: envoy.filters.http.fault
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- response_body
1985 GET / host=localhost


=== TEST 3: TLS to an endpoint
--- routes
- match: {prefix: /}
  route: {cluster: tls}
--- xds
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: tls
type: STATIC
transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    sni: tls.example
load_assignment: {cluster_name: tls, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $TEST_NGINX_BACKEND_PORT}}}}]}]}
--- request
GET /
--- error_code: 503
--- response_body eval
"no healthy upstream"
--- grep_error_log eval
qr/amesh: "tls" is refused: transport_socket: .*envoy\.transport_sockets\.tls/
--- grep_error_log_out eval
[qq{amesh: "tls" is refused: transport_socket: transport socket "envoy.transport_sockets.tls\n}, ""]


=== TEST 4: a filter that is off, and a route that puts it on
--- filters
- name: envoy.filters.http.rbac
  disabled: true
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
--- routes
- match: {prefix: /locked}
  route: {cluster: one}
  typed_per_filter_config:
    envoy.filters.http.rbac:
      "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute
      rbac: {rules: {action: ALLOW, policies: {}}}
- match: {prefix: /}
  route: {cluster: one}
--- request eval
["GET /locked", "GET /open"]
--- error_code eval
[500, 200]
--- response_body eval
["", "1985 GET /open host=localhost\n"]


=== TEST 5: rules that deny nothing are left out
--- filters
- name: envoy.filters.http.rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules: {action: DENY, policies: {}}
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- response_body
1985 GET / host=localhost
