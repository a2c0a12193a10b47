# The front door: HTTP of any destination through a stream server, and the TCP proxy behind it. A block asks the door
# through nginx's own proxy, which stands in for the workload, or by bytes of its own.
use lib 't/lib';
use AmeshTest;
use Test::Nginx::Socket 'no_plan';

no_shuffle();

# The client of a block is connected to the door itself: the port of the test is the door's.
my $http = server_port();
use_amesh();
$ENV{TEST_NGINX_DOOR_PORT} = $ENV{TEST_NGINX_STREAM_PORT};
server_port_for_client($ENV{TEST_NGINX_DOOR_PORT});
add_block_preprocessor(sub {
    my $block = shift;
    $block->set_value('main_config', <<'END' . ($block->main_config // ''));
stream {
    log_format door 'door $amesh_listener c=$amesh_cluster e=$amesh_endpoint f=$amesh_response_flags';
    access_log $TEST_NGINX_SERVROOT/logs/access.log door;
    server { listen 127.0.0.1:$TEST_NGINX_DOOR_PORT; amesh outbound; }
}
END
    $block->set_value('http_config', <<'END' . ($block->http_config // ''));
upstream amesh { amesh; }
log_format m '$status $amesh_listener r=$amesh_route c=$amesh_cluster e=$amesh_endpoint f=$amesh_response_flags n=$connection_requests a=$remote_addr';
server {
    listen 127.0.0.1:$TEST_NGINX_INTERNAL_PORT;
    amesh internal;
    access_log $TEST_NGINX_SERVROOT/logs/access.log m;
    include $TEST_NGINX_AMESH_CONF/server.conf;
}
END
    my $chain = $block->tcp;
    my $port = $ENV{TEST_NGINX_DOOR_PORT};
    my $t = 'type.googleapis.com/envoy';
    my $inspect = "listener_filters:\n- {name: envoy.filters.listener.http_inspector, typed_config: {\"\@type\": $t.extensions.filters.listener.http_inspector.v3.HttpInspector}}\n";
    my $listener = <<"END";
"\@type": $t.config.listener.v3.Listener
name: door
address: {socket_address: {address: 127.0.0.1, port_value: $port}}
traffic_direction: OUTBOUND
bind_to_port: false
END
    my $hcm = <<"END";
  filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "\@type": $t.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: door
      rds: {route_config_name: web-routes, config_source: {ads: {}}}
      http_filters: [{name: envoy.filters.http.router, typed_config: {"\@type": $t.extensions.filters.http.router.v3.Router}}]
END
    my $tcp = <<"END";
  filters:
  - name: envoy.filters.network.tcp_proxy
    typed_config: {"\@type": $t.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: door, cluster: @{[$chain // 'one']}}
END
    my $chains =
        defined $chain
        ? "filter_chains:\n-$tcp"
        : "${inspect}filter_chains:\n- filter_chain_match: {application_protocols: [http/1.0, http/1.1, h2c]}\n${hcm}default_filter_chain:\n$tcp";
    $chains =~ s/^-  filters/- filters/m;
    $block->set_value('xds', $listener . $chains . (defined $block->xds ? "---\n" . $block->xds : ''));
});
NginxTest::Runner::own_sections('tcp') if NginxTest::Runner->can('own_sections');
run_tests();

__DATA__

=== TEST 1: HTTP is handed over, and found by the address that it came to
--- config
--- routes
- name: r
  match: {prefix: /}
  route: {cluster: one}
--- request
GET /a%2Fb//c
--- response_body
1985 GET /a%2Fb//c host=localhost
--- response_headers
Server: envoy
--- access_log
200 door r=r c=one e=127.0.0.1:1985 f=- n=1 a=127.0.0.1


=== TEST 2: several requests on one connection
--- config
--- routes
- name: r
  match: {prefix: /}
  route: {cluster: one}
--- pipelined_requests eval
["GET /1", "GET /2", "POST /3\nbody", "GET /4"]
--- response_body eval
["1985 GET /1 host=localhost\n", "1985 GET /2 host=localhost\n", "1985 POST /3 host=localhost\n", "1985 GET /4 host=localhost\n"]


=== TEST 3: the first byte comes late, and alone
--- config
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- raw_request eval
["", "G", "ET /slow HT", "TP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"]
--- raw_request_middle_delay: 0.3
--- response_body
1985 GET /slow host=h


=== TEST 4: what is not HTTP goes to the TCP proxy
--- config
--- routes
- match: {prefix: /}
  direct_response: {status: 200, body: {inline_string: http}}
--- raw_request eval
"\x{16}\x{03}not http\r\n\r\n"
--- error_code: 400
--- response_body_like: 400 Bad Request
--- access_log
door door c=one e=127.0.0.1:1985 f=-


=== TEST 5: TCP without inspection
--- config
--- tcp: two
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /tcp
--- response_body
1986 GET /tcp host=localhost
--- access_log
door door c=two e=127.0.0.1:1986 f=-


=== TEST 6: a side that has said all may still hear
--- config
--- tcp: two
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- raw_request eval
"GET /half HTTP/1.0\r\nHost: half\r\n\r\n"
--- shutdown: 1
--- response_body
1986 GET /half host=half


=== TEST 7: more than any buffer, both ways
--- config
--- tcp: one
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request eval
"POST /length/\n" . ("x" x 300000)
--- response_body
POST 300000


=== TEST 8: TCP to an endpoint that refuses
--- config
--- tcp: down
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- error_code eval
""
--- response_body eval
""
--- access_log
door door c=down e=127.0.0.1:1987 f=UF


=== TEST 9: TCP to a cluster that does not exist
--- config
--- tcp: nowhere
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- error_code eval
""
--- access_log
door door c=- e=- f=NC


=== TEST 10: nobody gets in by the internal listener
--- config
    location = /around { proxy_pass http://127.0.0.1:$TEST_NGINX_INTERNAL_PORT/; }
--- http_config
server {
    listen 127.0.0.1:$TEST_NGINX_EXTRA_PORT;
    location / { proxy_pass http://127.0.0.1:$TEST_NGINX_INTERNAL_PORT; }
}
--- xds
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: around
type: STATIC
load_assignment: {cluster_name: around, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $TEST_NGINX_EXTRA_PORT}}}}]}]}
--- routes
- match: {prefix: /}
  route: {cluster: around}
--- request
GET /around
--- error_code: 502
--- error_log eval
qr/upstream prematurely closed connection|recv\(\) failed/
