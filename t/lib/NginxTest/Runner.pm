package NginxTest::Runner;

# Runs the blocks of a suite: each starts an nginx, sends its requests, and compares responses and logs.

use strict;
use warnings;
use List::Util qw(shuffle);
use Test::Builder;
use Time::HiRes qw(sleep);
use NginxTest::Checks qw(check_access_log check_error_log check_response rewind_logs);
use NginxTest::Client qw(exchange seconds);
use NginxTest::Request qw(requests);
use NginxTest::Response ();
use NginxTest::Server qw(prepare start stop version);
use NginxTest::Settings qw(
    add_block_preprocessor add_cleanup_handler config_preamble env_to_nginx html_dir log_level master_off master_on
    master_process_enabled no_long_string no_root_location no_shuffle repeat_each server_addr server_name server_port
    server_port_for_client server_root timeout worker_connections workers
);
use Exporter 'import';

# What a suite gets by "use Test::Nginx::Socket", beside Test::Base's own.
our @EXPORT = qw(
    run_tests bail_out
    add_block_preprocessor add_cleanup_handler config_preamble env_to_nginx html_dir log_level master_off master_on
    master_process_enabled no_long_string no_root_location no_shuffle repeat_each server_addr server_name server_port
    server_port_for_client server_root timeout worker_connections workers
);

# The sections that this runner knows; the first line is Test::Base's.
my %known = map { $_ => 1 } qw(
    ONLY SKIP LAST
    main_config http_config config post_main_config server_name log_level user_files init
    request raw_request raw_request_middle_delay pipelined_requests more_headers server_addr_for_client
    timeout wait abort shutdown ignore_response must_die skip_nginx skip_eval
    error_code error_code_like response_body response_body_like response_body_unlike
    response_headers response_headers_like raw_response_headers_like raw_response_headers_unlike
    error_log no_error_log grep_error_log grep_error_log_out access_log no_access_log
);

my $test  = Test::Builder->new;
my $owner = $$;
my $started;

# Names sections that are neither known nor a mistake: a preprocessor of the suite makes something of them.
sub own_sections { $known{$_} = 1 for @_ }

# Ends the whole run: what follows could not be believed.
sub bail_out {
    _cleanup();
    $test->BAIL_OUT(join '', @_);
}

sub run_tests {
    my $nginx = version();
    my @blocks = Test::Base::blocks();
    @blocks = shuffle @blocks unless $NginxTest::Settings::NoShuffle;
    for my $block (@blocks) {
        my $name = "$0 " . $block->name;
        eval {
            # A section that nobody reads would be a check that never fails.
            for (@{ $block->{_section_order}[0] || [] }) {
                die "no section \"--- $_\" is known to this runner\n" unless $known{$_};
            }
            $_->($block) for @NginxTest::Settings::Preprocessors;
            $block->set_value(name => $name);
            _run($block, $nginx) unless _skip($block, $nginx);
            1;
        } or bail_out("$name: $@");
    }
    _cleanup();
}

# skip_nginx: "tests: op version [: reason]"; skip_eval: "tests: Perl that says whether".
sub _skip {
    my ($block, $nginx) = @_;
    my ($tests, $skip, $why);
    if (defined(my $spec = $block->skip_nginx)) {
        $spec =~ /^\s*(\d+)\s*:\s*([<>]=?)\s*(\d+)\.(\d+)\.(\d+)\s*(?::\s*(.*?))?\s*$/s
            or die "skip_nginx is not \"tests: op version [: reason]\"\n";
        my ($n, $op, $version, $reason) = ($1, $2, sprintf('%d.%03d%03d', $3, $4, $5), $6);
        my %is = ('<' => $nginx < $version, '<=' => $nginx <= $version, '>' => $nginx > $version, '>=' => $nginx >= $version);
        ($tests, $skip, $why) = ($n, $is{$op}, $reason // "nginx $op $version");
    } elsif (defined($spec = $block->skip_eval)) {
        $spec =~ /^\s*(\d+)\s*:\s*(.*)/s or die "skip_eval is not \"tests: code\"\n";
        ($tests, $why) = ($1, 'skip_eval');
        $skip = eval $2;
        die "skip_eval: $@" if $@;
    }
    return 0 unless $skip;
    $test->skip($block->name . " - $why") for 1 .. $tests;
    return 1;
}

my $previous;

sub _run {
    my ($block) = @_;
    my $name   = $block->name;
    my $config = $block->config;

    # A block without "config" asks the nginx of the block before.
    if (defined $config) {
        _stop();
        prepare($block, $config);
        rewind_logs();
        if (defined $block->must_die) { _must_die($block) for 1 .. repeat_each(); return }
        my ($status, $said) = start(1);
        die "nginx does not start: $said" if $status;
        $started = 1;
    } elsif (!$started) {
        die "no \"--- config\", and no nginx runs that the block before has started\n";
    }
    if (defined(my $code = $block->init)) { eval $code; die "init: $@" if $@ }

    rewind_logs();
    _ask($block, $_ - 1) for 1 .. repeat_each();
}

sub _must_die {
    my ($block) = @_;
    my $name = $block->name;
    my ($status, $said) = start(0);
    my $want = $block->must_die;
    if ($want =~ /^\s*(\d+)\s*$/) { $test->is_num($status >> 8, $1, "$name - die with the expected exit code") }
    else                          { $test->ok($status != 0, "$name - die as expected") }
    check_error_log($block, 0, $said);
    stop() if $status == 0;
}

# Sends the block's requests, one connection each, and checks each response and what the logs say of it.
sub _ask {
    my ($block, $round) = @_;
    my $name      = $block->name;
    my $list      = requests($block);
    my $pipelined = $block->pipelined_requests;
    my $many      = $pipelined || @$list > 1;
    my $last      = ($pipelined ? @$pipelined : @$list) - 1;
    my $i         = 0;

    for my $request (@$list) {
        my $got = eval { exchange($request, $block) };
        if ($@) { $test->ok(0, "$name - $@"); $got = '' }
        my $head = $request->[0]{value} =~ /^\s*HEAD\s/;
        do {
            unless (defined $block->ignore_response) {
                my ($response, $rest) = eval { NginxTest::Response::parse($got, $head) };
                if ($@) { $test->ok(0, "$name - $@"); ($response, $rest) = NginxTest::Response::parse('') }
                if (!$pipelined && $rest ne '') {
                    $test->ok(0, "$name - " . length($rest) . ' bytes follow the response');
                }
                $got = $rest;
                check_response($block, $response, $i, $many, $round);
            }
            sleep seconds($block->wait) if $block->wait;
            check_error_log($block, $round);
            check_access_log($block, $round) unless defined $block->ignore_response;
            $i++;
        } while ($pipelined && $i <= $last);
    }
}

sub _stop { stop() if $started; $started = 0 }

sub _cleanup {
    return unless $$ == $owner;
    splice(@NginxTest::Settings::Cleanups, 0, 1)->() while @NginxTest::Settings::Cleanups;
    _stop() unless $ENV{TEST_NGINX_NO_CLEAN};
}

# A suite that is interrupted, or that dies, leaves no nginx behind.
$SIG{$_} //= sub { exit 1 } for qw(INT TERM HUP);
END { my $status = $?; _cleanup(); $? = $status }

1;
