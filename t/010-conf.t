# What the configuration may say, and what nginx says of mistakes: the file, the line, and the way out.
use lib 't/lib';
use AmeshTest;
use Test::Nginx::Socket 'no_plan';

no_shuffle();
use_amesh(bare => 1);
run_tests();

__DATA__

=== TEST 1: no zone
--- main_config
amesh {
server file:/nonexistent;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" has no "zone": add, for example, "zone mesh 64m;" in \S+/conf/nginx\.conf:\d+}]


=== TEST 2: no server
--- main_config
amesh {
zone mesh 16m;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" has no "server": add "server host:port;", "server unix:/path;" or "server file:/path;" in \S+/conf/nginx\.conf:\d+}]


=== TEST 3: a zone without size
--- main_config
amesh {
zone mesh;
server file:/nonexistent;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "zone" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 4: a zone that is no size
--- main_config
amesh {
zone mesh big;
server file:/nonexistent;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid zone size "big" in \S+/conf/nginx\.conf:\d+}]


=== TEST 5: a zone that is too small
--- main_config
amesh {
zone mesh 64k;
server file:/nonexistent;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*zone "mesh" is too small: 65536 bytes, at least 1m is needed in \S+/conf/nginx\.conf:\d+}]


=== TEST 6: two zones
--- main_config
amesh {
zone mesh 16m;
zone other 16m;
server file:/nonexistent;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"zone" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 7: the server nohost
--- main_config
amesh {
zone mesh 16m;
server nohost;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid server "nohost": give host:port, \[IPv6\]:port, unix:/path or file:/path in \S+/conf/nginx\.conf:\d+}]


=== TEST 8: the server host:0
--- main_config
amesh {
zone mesh 16m;
server host:0;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid server "host:0": give host:port, \[IPv6\]:port, unix:/path or file:/path in \S+/conf/nginx\.conf:\d+}]


=== TEST 9: the server host:99999
--- main_config
amesh {
zone mesh 16m;
server host:99999;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid server "host:99999": give host:port, \[IPv6\]:port, unix:/path or file:/path in \S+/conf/nginx\.conf:\d+}]


=== TEST 10: the server host:
--- main_config
amesh {
zone mesh 16m;
server host:;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid server "host:": give host:port, \[IPv6\]:port, unix:/path or file:/path in \S+/conf/nginx\.conf:\d+}]


=== TEST 11: the server :15010
--- main_config
amesh {
zone mesh 16m;
server :15010;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid server ":15010": give host:port, \[IPv6\]:port, unix:/path or file:/path in \S+/conf/nginx\.conf:\d+}]


=== TEST 12: the server file:
--- main_config
amesh {
zone mesh 16m;
server file:;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid server "file:": give host:port, \[IPv6\]:port, unix:/path or file:/path in \S+/conf/nginx\.conf:\d+}]


=== TEST 13: the server unix:
--- main_config
amesh {
zone mesh 16m;
server unix:;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid server "unix:": give host:port, \[IPv6\]:port, unix:/path or file:/path in \S+/conf/nginx\.conf:\d+}]


=== TEST 14: a file and another server
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
server 127.0.0.1:15010;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"server file:" stands alone: remove the other "server" lines in \S+/conf/nginx\.conf:\d+}]


=== TEST 15: an unknown protocol
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
protocol v2;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid protocol "v2": it is "delta" or "sotw" in \S+/conf/nginx\.conf:\d+}]


=== TEST 16: ssl is on or off
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
ssl maybe;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid value "maybe" in "ssl" directive, it must be "on" or "off" in \S+/conf/nginx\.conf:\d+}]


=== TEST 17: ssl twice
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
ssl on;
ssl on;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"ssl" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 18: ssl_trusted_certificate twice
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
ssl_trusted_certificate a;
ssl_trusted_certificate b;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"ssl_trusted_certificate" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 19: ssl_trusted_certificate without a value
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
ssl_trusted_certificate;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "ssl_trusted_certificate" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 20: ssl_certificate twice
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
ssl_certificate a;
ssl_certificate b;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"ssl_certificate" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 21: ssl_certificate without a value
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
ssl_certificate;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "ssl_certificate" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 22: ssl_certificate_key twice
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
ssl_certificate_key a;
ssl_certificate_key b;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"ssl_certificate_key" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 23: ssl_certificate_key without a value
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
ssl_certificate_key;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "ssl_certificate_key" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 24: token twice
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
token a;
token b;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"token" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 25: token without a value
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
token;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "token" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 26: snapshot twice
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
snapshot a;
snapshot b;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"snapshot" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 27: snapshot without a value
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
snapshot;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "snapshot" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 28: ssl_name twice
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
ssl_name a;
ssl_name b;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"ssl_name" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 29: ssl_name without a value
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
ssl_name;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "ssl_name" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 30: node twice
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
node a;
node b;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"node" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 31: node without a value
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
node;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "node" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 32: node_cluster twice
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
node_cluster a;
node_cluster b;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"node_cluster" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 33: node_cluster without a value
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
node_cluster;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "node_cluster" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 34: node_locality twice
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
node_locality a;
node_locality b;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"node_locality" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 35: node_locality without a value
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
node_locality;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "node_locality" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 36: a locality of four parts
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
node_locality a b c d;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "node_locality" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 37: metadata without a value
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
node_metadata a;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "node_metadata" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 38: a certificate without its key
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
ssl_certificate a.pem;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"ssl_certificate" and "ssl_certificate_key" go together in \S+/conf/nginx\.conf:\d+}]


=== TEST 39: a key without its certificate
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
ssl_certificate_key a.pem;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"ssl_certificate" and "ssl_certificate_key" go together in \S+/conf/nginx\.conf:\d+}]


=== TEST 40: a mark that is no number
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
mark red;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid mark "red": it is a number in \S+/conf/nginx\.conf:\d+}]


=== TEST 41: mark twice
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
mark 1;
mark 2;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"mark" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 42: an unknown directive
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
zones 1;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*unknown directive "zones" in "amesh" in \S+/conf/nginx\.conf:\d+}]


=== TEST 43: TLS without roots
--- main_config
amesh {
zone mesh 16m;
server 127.0.0.1:15010;
ssl on;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*server "127\.0\.0\.1:15010" speaks TLS and there is no root certificate: set "ssl_trusted_certificate", or "ssl off" for plaintext in \S+/conf/nginx\.conf:\d+}]


=== TEST 44: two blocks
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 45: a server without the block
--- main_config

--- config
amesh outbound;
--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" in a server needs an "amesh \{ … \}" block above, in the main context in \S+/conf/nginx\.conf:\d+}]


=== TEST 46: an upstream without the block
--- main_config

--- http_config
upstream x { amesh; }
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" in an upstream needs an "amesh \{ … \}" block above, in the main context in \S+/conf/nginx\.conf:\d+}]


=== TEST 47: a mode that is none
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- config
amesh sideways;
--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid parameter "sideways" of "amesh": it is "outbound", "inbound" or "internal" in \S+/conf/nginx\.conf:\d+}]


=== TEST 48: two modes
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- config
amesh outbound;
amesh inbound;
--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 49: a mode without a word
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- config
amesh;
--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "amesh" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 50: an upstream takes a cluster alone
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- http_config
upstream x { amesh stable; }
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" of an upstream takes "cluster=NAME" alone in \S+/conf/nginx\.conf:\d+}]


=== TEST 51: an upstream's cluster has a name
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- http_config
upstream x { amesh cluster=; }
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" of an upstream takes "cluster=NAME" alone in \S+/conf/nginx\.conf:\d+}]


=== TEST 52: an upstream twice
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- http_config
upstream x { amesh; amesh; }
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 53: another balancer before
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- http_config
upstream x { least_conn; amesh; }
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" directive is not together with another balancer in \S+/conf/nginx\.conf:\d+}]


=== TEST 54: amesh_status takes no words
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- config
location /s { amesh_status on; }
--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid number of arguments in "amesh_status" directive in \S+/conf/nginx\.conf:\d+}]


=== TEST 55: amesh_status stands in a location
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- config
amesh_status;
--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh_status" directive is not allowed here in \S+/conf/nginx\.conf:\d+}]


=== TEST 56: stream without the block
--- main_config
stream { server { listen 127.0.0.1:$TEST_NGINX_STREAM_PORT; amesh outbound; } }
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" in a server needs an "amesh \{ … \}" block above, in the main context in \S+/conf/nginx\.conf:\d+}]


=== TEST 57: a mode of stream that is none
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
stream { server { listen 127.0.0.1:$TEST_NGINX_STREAM_PORT; amesh internal; } }
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid parameter "internal" of "amesh": in stream it is "outbound" or "inbound" in \S+/conf/nginx\.conf:\d+}]


=== TEST 58: two modes in stream
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
stream { server { listen 127.0.0.1:$TEST_NGINX_STREAM_PORT; amesh outbound; amesh inbound; } }
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" directive is duplicate in \S+/conf/nginx\.conf:\d+}]


=== TEST 59: stream with proxy_pass
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
stream { server { listen 127.0.0.1:$TEST_NGINX_STREAM_PORT; proxy_pass 127.0.0.1:1; amesh outbound; } }
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" is not together with "proxy_pass" or "return" in \S+/conf/nginx\.conf:\d+}]


=== TEST 60: all directives
--- main_config
amesh {
    zone mesh 16m;
    server unix:$TEST_NGINX_HTML_DIR/none.sock;
    server [::1]:15010;
    server istiod.istio-system.svc:15010;
    protocol sotw;
    ssl off;
    ssl_name istiod.example;
    token token;
    node "sidecar~127.0.0.1~a.b~b.svc.cluster.local";
    node_cluster a.b;
    node_locality region zone sub;
    node_metadata LABELS.app a;
    node_metadata NAMESPACE b;
    mark 1337;
}
--- config
    location = /s { amesh_status; }
    location = /ready { amesh_status; }
--- request eval
["GET /s", "GET /ready"]
--- error_code eval
[200, 503]
--- response_body_like eval
[qr/"clusters": /, qr/^not ready: /]


=== TEST 61: the block alone changes nothing
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- config
    location = /a { return 200 "a\n"; }
--- request
GET /a
--- response_body
a
--- no_error_log
[error]
[alert]


=== TEST 62: no block at all changes nothing
--- config
    location = /a { return 200 "a\n"; }
--- request
GET /a
--- response_body
a
--- no_error_log
[error]
[alert]


=== TEST 63: HTTP/2 is a parameter of an internal server
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- config
amesh outbound http2;
--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" of a server takes a second parameter as "amesh internal http2" alone in \S+/conf/nginx\.conf:\d+}]


=== TEST 64: a second parameter that is none
--- main_config
amesh { zone mesh 16m; server file:$TEST_NGINX_HTML_DIR/xds; }
--- config
amesh internal http3;
--- must_die
--- error_log eval
[qr{\[emerg\] .*"amesh" of a server takes a second parameter as "amesh internal http2" alone in \S+/conf/nginx\.conf:\d+}]
