# What the directive "etcd" may say, and what nginx says of mistakes.
use lib 't/lib';
use AmeshTest;
use Test::Nginx::Socket 'no_plan';

no_shuffle();
use_amesh(bare => 1);
run_tests();

__DATA__

=== TEST 1: an address that is none
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid address "127\.0\.0\.1" in "etcd": give address:port, \[IPv6\]:port, \*:port, port or unix:/path in \S+/conf/nginx\.conf:\d+}]


=== TEST 2: no address at all
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"etcd" has no address in \S+/conf/nginx\.conf:\d+}]


=== TEST 3: a port that is none
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:0;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid address "127\.0\.0\.1:0" in "etcd": give .* in \S+/conf/nginx\.conf:\d+}]


=== TEST 4: a parameter that is unknown
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379 name=x;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*unknown parameter "name" in "etcd" in \S+/conf/nginx\.conf:\d+}]


=== TEST 5: a parameter without a value
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379 ssl;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid parameter "ssl" in "etcd": it is name=value in \S+/conf/nginx\.conf:\d+}]


=== TEST 6: a parameter twice
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379 prefix=/a prefix=/b;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"prefix" is given twice in "etcd" in \S+/conf/nginx\.conf:\d+}]


=== TEST 7: a prefix that ends with a slash
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379 prefix=/a/;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid prefix "/a/" in "etcd": it begins with a slash and ends without one in \S+/conf/nginx\.conf:\d+}]


=== TEST 8: a user without a password
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379 user=u;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"user" and "password_file" of "etcd" go together in \S+/conf/nginx\.conf:\d+}]


=== TEST 9: a password that is not there
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379 user=u password_file=none;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*\S+/conf/none: No such file or directory \(os error 2\) in \S+/conf/nginx\.conf:\d+}]


=== TEST 10: a password that is empty
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379 user=u password_file=/dev/null;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*/dev/null: its first line is to be the password, and is empty in \S+/conf/nginx\.conf:\d+}]


=== TEST 11: a certificate without its key
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379 ssl_certificate=a.pem;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"ssl_certificate" and "ssl_certificate_key" of "etcd" go together in \S+/conf/nginx\.conf:\d+}]


=== TEST 12: certificates of clients without one of ours
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379 ssl_client_certificate=a.pem;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*"ssl_client_certificate" of "etcd" wants "ssl_certificate", too in \S+/conf/nginx\.conf:\d+}]


=== TEST 13: a certificate that is not there
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379 ssl_certificate=none.pem ssl_certificate_key=none.pem;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*none\.pem: No such file or directory \(os error 2\) in \S+/conf/nginx\.conf:\d+}]


=== TEST 14: two addresses that are one
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379; etcd localhost:2379;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*two "etcd" have one address: remove one in \S+/conf/nginx\.conf:\d+}]


=== TEST 15: two prefixes
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379; etcd 127.0.0.1:2380 prefix=/x;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*all "etcd" have one "prefix", "destination", "inbound" and "plugins": give them the same in \S+/conf/nginx\.conf:\d+}]


=== TEST 16: a destination that is none
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379 destination=here;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid "destination=here": it is original, server or ignored in \S+/conf/nginx\.conf:\d+}]


=== TEST 17: inbound that is neither
--- main_config
amesh {
zone mesh 16m;
server file:/nonexistent;
etcd 127.0.0.1:2379 inbound=yes;
}
--- config

--- must_die
--- error_log eval
[qr{\[emerg\] .*invalid "inbound=yes": it is on or off in \S+/conf/nginx\.conf:\d+}]

