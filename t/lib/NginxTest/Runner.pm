package NginxTest::Runner;

# Runs the blocks of a suite: each starts an nginx, sends its requests and compares what comes back.

use v5.26;
use strict;
use warnings;

use List::Util qw(shuffle);
use Test::Base ();
use Test::LongString ();
use Test::More ();
use Time::HiRes qw(sleep time);

use NginxTest::Client;
use NginxTest::Server;

our @EXPORT = qw(
    add_block_preprocessor add_cleanup_handler blocks bail_out log_level master_on no_long_string no_root_location
    no_shuffle plan repeat_each run_tests server_port server_root html_dir workers
    is is_deeply ok like unlike diag pass fail is_string
);

# Sections that blocks may have; those of the upper line belong to Test::Base.
my %KNOWN = map { $_ => 1 } qw(
    ONLY SKIP LAST description
    main_config http_config config post_main_config request pipelined_requests raw_request raw_request_middle_delay
    more_headers response_body response_body_like response_body_unlike response_headers response_headers_like
    raw_response_headers_like raw_response_headers_unlike error_code error_code_like error_log no_error_log
    grep_error_log grep_error_log_out access_log no_access_log must_die user_files timeout wait log_level ignore_response
    shutdown abort tcp_listen tcp_query tcp_query_len tcp_reply
);

my %settings = (repeat => 1, shuffle => 1, root_location => 1, log_level => 'debug', workers => 1, long_string => 1);
my (@preprocessors, @cleanups, %own_sections);

# Exports the functions of a suite to its package, and makes the plan that is among the arguments.
sub export_to {
    my ($package, @args) = @_;
    Test::Base->import('-package', $package);
    my $self = __PACKAGE__;
    no strict 'refs';
    no warnings 'redefine';
    *{"${package}::$_"} = \&{"${self}::$_"} for @EXPORT;
    strict->import;
    warnings->import;
    Test::More::plan(@args) if @args;
}

sub plan { Test::More::plan(@_ == 1 && $_[0] eq 'no_plan' ? 'no_plan' : @_) }
sub blocks { Test::Base::blocks(@_) }
sub bail_out { Test::More::BAIL_OUT(@_) }
sub ok ($;$) { goto &Test::More::ok }
sub is ($$;$) { goto &Test::More::is }
sub is_deeply { goto &Test::More::is_deeply }
sub like ($$;$) { goto &Test::More::like }
sub unlike ($$;$) { goto &Test::More::unlike }
sub pass (;$) { goto &Test::More::pass }
sub fail (;$) { goto &Test::More::fail }
sub diag { Test::More::diag(@_) }

# Equality of texts; a difference is shown where it begins, unless no_long_string() wants all of it.
sub is_string ($$;$) {
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return $settings{long_string} ? Test::LongString::is_string($_[0], $_[1], $_[2]) : Test::More::is($_[0], $_[1], $_[2]);
}

sub repeat_each { $settings{repeat} = shift if @_; $settings{repeat} }
sub workers { $settings{workers} = shift if @_; $settings{workers} }
sub log_level { $settings{log_level} = shift if @_; $settings{log_level} }
sub no_shuffle { $settings{shuffle} = 0 }
sub no_long_string { $settings{long_string} = 0 }
sub no_root_location { $settings{root_location} = 0 }
sub master_on { 1 }
sub server_port { NginxTest::Server::port(@_) }
sub server_root { NginxTest::Server::root() }
sub html_dir { NginxTest::Server::html_dir() }
sub add_cleanup_handler { push @cleanups, @_ }

# Has a function change each block before it runs.
sub add_block_preprocessor { push @preprocessors, @_ }

# Names sections that a preprocessor of the suite turns into known ones.
sub own_sections { $own_sections{$_} = 1 for @_ }

sub run_tests {
    my @blocks = blocks();
    @blocks = shuffle @blocks if $settings{shuffle};
    for my $block (@blocks) {
        check_sections($block);
        $_->($block) for @preprocessors;
        next if exists $block->{SKIP};
        run_block($block) for 1 .. $settings{repeat};
    }
    $_->() for @cleanups;
}

sub check_sections {
    my ($block) = @_;
    for my $section (@{ $block->{_section_order}[0] // [] }) {
        bail_out($block->name . " - unknown section \"--- $section\"") unless $KNOWN{$section} || $own_sections{$section};
    }
}

# The value of a section, undef where the block has none.
sub value {
    my ($block, $section) = @_;
    return exists $block->{$section} ? $block->$section : undef;
}

sub run_block {
    my ($block) = @_;
    my $name = $block->name;
    my $server = NginxTest::Server->new(
        name => $name,
        workers => $settings{workers},
        root_location => $settings{root_location},
        log_level => value($block, 'log_level') // $settings{log_level},
        map { $_ => value($block, $_) } qw(main_config http_config config post_main_config user_files must_die),
    );
    my $peer = defined value($block, 'tcp_listen') ? NginxTest::Client::listen_as($block) : undef;
    my $why = $server->start;
    if (defined value($block, 'must_die')) {
        ok(defined $why, "$name - nginx refuses the configuration");
        $server->stop unless defined $why;
    } elsif (defined $why) {
        fail("$name - $why");
        diag($server->error_log);
    } else {
        ask($block, $server);
    }
    sleep value($block, 'wait') if value($block, 'wait');
    check_logs($block, $server);
    $peer->check if $peer;
    $why = $server->stop;
    fail("$name - $why") if defined $why;
    check_alerts($name, $server);
}

# A worker that died or that an allocator stopped is a failure of every block.
sub check_alerts {
    my ($name, $server) = @_;
    my @died = grep { /exited on signal/ } split /^/, $server->error_log;
    fail("$name - @died") if @died;
}

# Sends the block's requests and compares the responses.
sub ask {
    my ($block, $server) = @_;
    my @requests = NginxTest::Client::requests($block);
    my $name = $block->name;
    bail_out("$name - no \"--- request\", \"--- raw_request\" or \"--- pipelined_requests\"") unless @requests;
    my $timeout = value($block, 'timeout') // $ENV{TEST_NGINX_TIMEOUT} // 3;
    $timeout = $timeout =~ /^(\d+)ms$/ ? $1 / 1000 : $timeout =~ /^([\d.]+)s?$/ ? $1 : bail_out("$name - bad timeout");
    my $pipelined = defined value($block, 'pipelined_requests');
    my @responses =
        $pipelined
        ? NginxTest::Client::converse($server, $timeout, $block, @requests)
        : map { NginxTest::Client::converse($server, $timeout, $block, $_) } @requests;
    if (exists $block->{ignore_response}) {
        return;
    }
    my $count = @requests;
    for my $i (0 .. $count - 1) {
        my $title = $count > 1 ? "$name - request " . ($i + 1) : $name;
        compare($block, $title, $responses[$i] // { raw => '', head => '', error => 'no response' }, $i);
    }
}

# The i-th of a section's values: an array has one for each request, a text is for all.
sub at {
    my ($value, $i) = @_;
    return ref $value eq 'ARRAY' ? $value->[$i] : $value;
}

sub compare {
    my ($block, $name, $response, $i) = @_;
    diag("$name - $response->{error}") if defined $response->{error};

    if (defined(my $like = at(value($block, 'error_code_like'), $i))) {
        like($response->{status} // '', qr/$like/, "$name - status code like");
    } else {
        my $code = at(value($block, 'error_code'), $i) // 200;
        $code =~ s/^\s+|\s+$//g;
        is($response->{status} // '', $code, "$name - status code");
    }
    my $body = $response->{body} // '';
    if (defined(my $expected = at(value($block, 'response_body'), $i))) {
        $expected = client_text($expected, $name);
        is_string($body, $expected, "$name - response_body");
    }
    if (defined(my $expected = at(value($block, 'response_body_like'), $i))) {
        $expected = pattern($expected, $name);
        like($body, $expected, "$name - response_body_like");
    }
    if (defined(my $expected = at(value($block, 'response_body_unlike'), $i))) {
        $expected = pattern($expected, $name);
        unlike($body, $expected, "$name - response_body_unlike");
    }
    if (defined(my $expected = at(value($block, 'response_headers'), $i))) {
        for my $line (lines($expected)) {
            my ($absent, $key, $want) = header_line($line, $name);
            my $got = join ', ', @{ $response->{headers}{ lc $key } // [] };
            is($got, $absent ? '' : $want, "$name - header $key" . ($absent ? ' absent' : ''));
        }
    }
    if (defined(my $expected = at(value($block, 'response_headers_like'), $i))) {
        for my $line (lines($expected)) {
            my (undef, $key, $want) = header_line($line, $name);
            my $got = join ', ', @{ $response->{headers}{ lc $key } // [] };
            like($got, qr/^$want$/, "$name - header $key like");
        }
    }
    if (defined(my $expected = at(value($block, 'raw_response_headers_like'), $i))) {
        $expected = pattern($expected, $name);
        like($response->{head}, $expected, "$name - raw response headers like");
    }
    if (defined(my $expected = at(value($block, 'raw_response_headers_unlike'), $i))) {
        $expected = pattern($expected, $name);
        unlike($response->{head}, $expected, "$name - raw response headers unlike");
    }
}

# Text as the client sees it: the variables of the environment and $ServerPort are put in.
sub client_text {
    my ($text, $name) = @_;
    my $port = server_port();
    $text =~ s/\$ServerPort(?:ForClient)?\b/$port/g;
    return NginxTest::Server::expand_env($text, $name);
}

sub pattern {
    my ($pattern, $name) = @_;
    return $pattern if ref $pattern eq 'Regexp';
    $pattern = client_text($pattern, $name);
    chomp $pattern;
    return qr/$pattern/sm;
}

sub lines { grep { /\S/ } split /\n/, $_[0] }

sub header_line {
    my ($line, $name) = @_;
    my $absent = $line =~ s/^\s*!\s*//;
    my ($key, $want) = split /\s*:\s*/, $line, 2;
    $key =~ s/^\s+|\s+$//g;
    $want //= '';
    $want =~ s/\s+$//;
    return ($absent, $key, client_text($want, $name));
}

# The patterns of a log section: a list, a regular expression, or a text with one plain piece a line.
sub log_patterns {
    my ($value, $name) = @_;
    my @all = ref $value eq 'ARRAY' ? @$value : ref $value ? ($value) : lines($value);
    return map { ref $_ ? $_ : do { my $t = client_text($_, $name); chomp $t; qr/\Q$t\E/ } } grep { defined } @all;
}

sub check_logs {
    my ($block, $server) = @_;
    my $name = $block->name;
    for my $kind (qw(error_log access_log)) {
        my $expected = value($block, $kind);
        if (defined $expected) {
            for my $pattern (log_patterns($expected, $name)) {
                # A worker writes its line after the last byte of the response.
                my $until = time + 1;
                my $found;
                while (!($found = $server->$kind =~ $pattern) && time < $until) { sleep 0.02 }
                ok($found, "$name - $kind has a line that matches $pattern") or diag(tail($server->$kind));
            }
        }
        if (defined(my $unwanted = value($block, "no_$kind"))) {
            for my $pattern (log_patterns($unwanted, $name)) {
                my @found = grep { $_ =~ $pattern } split /^/, $server->$kind;
                ok(!@found, "$name - $kind has no line that matches $pattern") or diag(@found);
            }
        }
    }
    if (defined(my $grep = value($block, 'grep_error_log'))) {
        my $pattern = pattern($grep, $name);
        my $log = $server->error_log;
        my $found = '';
        $found .= "$&\n" while $log =~ /$pattern/g;
        is_string($found, value($block, 'grep_error_log_out') // '', "$name - grep_error_log_out");
    }
}

sub tail {
    my @all = grep { !/\[debug\]/ } split /^/, $_[0];
    return join '', @all > 20 ? @all[-20 .. -1] : @all;
}

1;
