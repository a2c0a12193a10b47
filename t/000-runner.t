# The runner itself, on plain nginx.
use lib 't/lib';
use Test::Nginx::Socket 'no_plan';

use Cwd qw(abs_path);
use File::Temp qw(tempdir);

# The real library leaves this to the suite.
$ENV{TEST_NGINX_HTML_DIR} ||= html_dir();

no_shuffle();
run_tests();
# The library has tests of its own.
if (NginxTest::Runner->can('run_tests')) {
    wrong_expectations_fail();
    what_is_wrong_ends_the_run();
    the_library_goes_first();
}

# A runner that passes whatever comes proves nothing: suites with one wrong expectation each must fail, and by that
# expectation alone.
sub wrong_expectations_fail {
    my %wrong = (
        error_code => "--- error_code: 201\n",
        response_body => "--- response_body\nbye\n",
        response_body_like => "--- response_body_like: ^bye\n",
        response_body_unlike => "--- response_body_unlike: hel+o\n",
        response_headers => "--- response_headers\nX-A: 2\n",
        'absent response_headers' => "--- response_headers\n! X-A\n",
        response_headers_like => "--- response_headers_like\nX-A: [2-9]\n",
        raw_response_headers_like => "--- raw_response_headers_like: X-B\n",
        raw_response_headers_unlike => "--- raw_response_headers_unlike: X-A\n",
        error_log => "--- error_log\nnever said\n",
        no_error_log => "--- no_error_log\nsignal process started\nhttp request line\n",
        access_log => "--- access_log\nPOST\n",
        no_access_log => "--- no_access_log\nGET\n",
        must_die => "--- must_die\n",
    );
    for my $what (sort keys %wrong) {
        my ($status, $tap) = suite(<<"END");
=== TEST 1: right
--- config
    location = /a { add_header X-A 1; return 200 "hello\\n"; }
--- request
GET /a
--- response_body
hello

=== TEST 2: wrong
--- config
    location = /a { add_header X-A 1; return 200 "hello\\n"; }
--- request
GET /a
$wrong{$what}
END
        isnt_zero($status, "a wrong $what fails its suite");
        my @failed = $tap =~ /^not ok \d+ - (.*)$/mg;
        ok(@failed == 1 && $failed[0] =~ /TEST 2: wrong - /, "a wrong $what fails by itself") or diag($tap);
    }
}

# Runs blocks as a suite of its own, beside ours; returns its exit status and what it printed.
sub suite {
    my ($blocks, @path) = @_;
    my $dir = tempdir(CLEANUP => 1);
    my $path = join ', ', map { "'$_'" } abs_path('t/lib'), @path;
    open my $out, '>', "$dir/wrong.t" or die "cannot write $dir/wrong.t: $!";
    print {$out} "use lib $path;\nuse Test::Nginx::Socket 'no_plan';\nno_shuffle();\nrun_tests();\n__DATA__\n\n$blocks";
    close $out;
    local %ENV = (%ENV, TEST_NGINX_SERVROOT => "$dir/servroot", TEST_NGINX_SERVER_PORT => server_port() + 7);
    delete @ENV{qw(TEST_NGINX_RANDOMIZE TEST_NGINX_CLIENT_PORT TEST_NGINX_HTML_DIR TEST_NGINX_LOAD_MODULES)};
    my $tap = `$^X "$dir/wrong.t" 2>&1`;
    return ($?, $tap);
}

# A mistake in a suite is no pass.
sub what_is_wrong_ends_the_run {
    my %mistake = (
        'a section that nobody knows' => ["--- config\n--- request\nGET /\n--- respnse_body\n", qr/no section "--- respnse_body"/],
        'one answer to two requests' => ["--- config\n--- request eval\n['GET /', 'GET /']\n--- error_code: 200\n", qr/error_code must be an array/],
        'no request' => ["--- config\n", qr/no request/],
        'a variable that is not set' => ["--- config\nset \$a \$TEST_NGINX_NO_SUCH;\n--- request\nGET /\n", qr/no TEST_NGINX_NO_SUCH/],
        'a configuration that nginx refuses' => ["--- config\nno_such_directive;\n--- request\nGET /\n", qr/unknown directive "no_such_directive"/],
        'no configuration to go on with' => ["--- request\nGET /\n", qr/no "--- config"/],
    );
    for my $what (sort keys %mistake) {
        my ($block, $says) = @{ $mistake{$what} };
        my ($status, $tap) = suite("=== TEST 1: it\n$block");
        isnt_zero($status, "$what ends the run");
        like($tap, qr/^Bail out!.*$says/m, "$what is named");
    }
    my ($status, $tap) = suite("=== TEST 1: hangs\n--- config\nlocation /h { proxy_pass http://127.0.0.1:\$TEST_NGINX_SERVER_PORT/i; }\n"
        . "location /i { limit_rate 1; }\n--- user_files\n>>> i\nslow slow slow\n--- timeout: 200ms\n--- request\nGET /h\n");
    isnt_zero($status, 'a response that does not end fails');
    like($tap, qr/not ok 1 .*nginx did not end the connection within 0\.2 s/, 'and says why');
}

# Where the library itself is on the path, it runs the suites, wherever on the path it is.
sub the_library_goes_first {
    my $dir = tempdir(CLEANUP => 1);
    mkdir "$dir/Test" and mkdir "$dir/Test/Nginx" or die "cannot make $dir/Test/Nginx: $!";
    open my $out, '>', "$dir/Test/Nginx/Socket.pm" or die "cannot write there: $!";
    print {$out} "package Test::Nginx::Socket;\nsub import { no strict 'refs'; *{caller . '::run_tests'} = sub { print qq{1..1\\nok 1 - the library\\n} };\n"
        . "*{caller . '::no_shuffle'} = sub {} }\n1;\n";
    close $out;
    my ($status, $tap) = suite('', $dir);
    is($tap, "1..1\nok 1 - the library\n", 'the library runs the suite');
}

sub isnt_zero {
    my ($status, $name) = @_;
    ok($status != 0, $name);
}

__DATA__

=== TEST 1: a body and a status
--- config
    location = /a { return 201 "hello\n"; }
--- request
GET /a
--- more_headers
X-One: 1
--- error_code: 201
--- response_body
hello
--- response_headers
Content-Type: text/plain
! X-None
--- raw_response_headers_like: HTTP/1.1 201 Created\r\n
--- raw_response_headers_unlike: X-None
--- no_error_log
[error]


=== TEST 2: several requests, a connection for each
--- config
    location ~ ^/[xy] { return 200 "$request_uri $connection_requests $http_connection\n"; }
    location = /no { return 404 "no\n"; }
--- request eval
["GET /x", "GET /no", "GET /y"]
--- error_code eval
[200, 404, 200]
--- response_body eval
["/x 1 close\n", "no\n", "/y 1 close\n"]


=== TEST 3: several requests on one connection
--- config
    location = /r { return 200 "$connection_requests\n"; }
--- pipelined_requests eval
["GET /r", "GET /r", "GET /r"]
--- response_body eval
["1\n", "2\n", "3\n"]


=== TEST 4: raw bytes, in pieces
--- config
    location = /slow { return 200 "got it\n"; }
--- raw_request eval
["GET /sl", "ow HTTP/1.0\r\n\r\n"]
--- raw_request_middle_delay: 0.1
--- response_body
got it
--- response_headers_like
Content-Length: \d+


=== TEST 5: a body that is sent, chunks that come
--- config
    location = /echo {
        proxy_pass http://127.0.0.1:$TEST_NGINX_SERVER_PORT/back;
    }
    location = /back { return 200 "$http_content_length $request_method\n"; }
    location /page { ssi on; ssi_types text/plain; root $TEST_NGINX_HTML_DIR; }
--- user_files
>>> page.txt
<!--# echo var="request_method" -->
--- request eval
["POST /echo\nbody", "GET /page.txt"]
--- response_body_like eval
["^4 POST\n\$", "^GET\n\$"]
--- response_headers eval
["! Transfer-Encoding", "Transfer-Encoding: chunked"]


=== TEST 6: a configuration that nginx refuses
--- config
    no_such_directive;
--- must_die
--- error_log
[emerg]
unknown directive "no_such_directive"


=== TEST 7: the files of a block, and the environment in it
--- http_config
    map $uri $where { default "$TEST_NGINX_HTML_DIR"; }
--- config
    location = /where { return 200 "$where\n"; }
--- user_files
>>> a.txt
first
>>> sub/b.txt
second
--- request eval
["GET /a.txt", "GET /sub/b.txt", "GET /where"]
--- response_body eval
["first\n", "second\n", "$ENV{TEST_NGINX_HTML_DIR}\n"]


=== TEST 8: logs
--- config
    location = /gone { root /nonexistent; }
--- request
GET /gone
--- error_code: 404
--- error_log eval
qr/open\(\) "\/nonexistent\/gone" failed/
--- no_error_log
[crit]
[alert]
--- access_log
"GET /gone HTTP/1.1" 404
--- no_access_log
POST


=== TEST 9: HEAD has no body
--- config
    location = /h { return 200 "12345"; }
--- request
HEAD /h
--- response_headers
Content-Length: 5
--- response_body eval
""


=== TEST 10: a request of HTTP/1.0
--- config
    location = /v { return 200 "$server_protocol\n"; }
--- request
GET /v HTTP/1.0
--- response_body
HTTP/1.0


=== TEST 11: a request in packets, with pauses
--- config
    location = /echo { proxy_pass http://127.0.0.1:$TEST_NGINX_SERVER_PORT/back; }
    location = /back { return 200 "$http_content_length $http_x_a\n"; }
--- more_headers
X-A: a
--- request eval
[["PO", {value => "ST /echo\nab", delay_before => 0.05}, {value => "cd", delay_before => "50ms"}], "GET /back"]
--- response_body eval
["4 a\n", " a\n"]


=== TEST 12: a port that is free, everywhere the same
--- http_config
    server { listen 127.0.0.1:$TEST_NGINX_RAND_PORT_1; return 200 "other\n"; }
    server { listen 127.0.0.1:$TEST_NGINX_RAND_PORT_2; return 200 "third\n"; }
--- config
    location = / { proxy_pass http://127.0.0.1:$TEST_NGINX_RAND_PORT_1; }
    location = /third { proxy_pass http://127.0.0.1:$TEST_NGINX_RAND_PORT_2; }
    location = /own { return 200 "$server_port\n"; }
--- request eval
["GET /", "GET /third", "GET /own"]
--- response_body eval
["other\n", "third\n", "\$ServerPort\n"]


=== TEST 13: no configuration: the nginx before answers
--- request
GET /own
--- response_body
$ServerPort


=== TEST 14: what the log says, piece by piece
--- config
    location = /log { root /nonexistent; log_not_found on; }
--- request
GET /log
--- error_code: 404
--- grep_error_log eval
qr/open\(\) "\/nonexistent\/log" failed|no such phrase/
--- grep_error_log_out
open() "/nonexistent/log" failed


=== TEST 15: Perl before the request, and a pause after
--- config
    location = /flag { root $TEST_NGINX_HTML_DIR; }
--- init
open my $out, '>', html_dir() . '/flag' or die $!;
print {$out} "set\n";
--- request
GET /flag
--- wait: 0.01
--- response_body
set


=== TEST 16: a connection that is kept ends with the test's patience
--- config
    location = /k { return 200 "kept\n"; }
--- request
GET /k
--- more_headers
Connection: keep-alive
--- timeout: 200ms
--- abort
--- response_body
kept


=== TEST 17: a body that is not text, and a pattern of bytes
--- config
    location = /bin { root $TEST_NGINX_HTML_DIR; }
--- user_files eval
[["bin", "\x00\xff\r\n\x01"]]
--- request
GET /bin
--- response_body eval
"\x00\xff\r\n\x01"
--- response_headers
Content-Length: 5
