# $connection_original_dst where nothing was redirected: not found, and no word in the log.
use lib 't/lib';
use AmeshTest;
use Test::Nginx::Socket 'no_plan';

no_shuffle();
use_amesh();
run_tests();

__DATA__

=== TEST 1: http
--- config
    location = /d { return 200 "[$connection_original_dst][$connection_original_dst_addr][$connection_original_dst_port]\n"; }
--- request
GET /d
--- response_body
[][][]
--- no_error_log
[warn]
[error]
[alert]
SO_ORIGINAL_DST


=== TEST 2: http, where a log format shows what is not found
--- http_config
log_format dst 'dst="$connection_original_dst" addr="$connection_original_dst_addr" port="$connection_original_dst_port"';
--- config
    access_log $TEST_NGINX_SERVROOT/logs/access.log dst;
    location = /d { return 204; }
--- request
GET /d
--- error_code: 204
--- access_log
dst="-" addr="-" port="-"


=== TEST 3: stream
--- main_config
stream {
    log_format dst 'stream dst="$connection_original_dst" addr="$connection_original_dst_addr" port="$connection_original_dst_port"';
    server {
        listen 127.0.0.1:$TEST_NGINX_STREAM_PORT;
        proxy_pass 127.0.0.1:$TEST_NGINX_BACKEND_PORT;
        access_log $TEST_NGINX_SERVROOT/logs/access.log dst;
    }
}
--- config
    location = /s { proxy_pass http://127.0.0.1:$TEST_NGINX_STREAM_PORT; }
--- request
GET /s
--- response_body
1985 GET /s host=127.0.0.1:1988
--- access_log
stream dst="-" addr="-" port="-"
--- no_error_log
[alert]
SO_ORIGINAL_DST
