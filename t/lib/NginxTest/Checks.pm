package NginxTest::Checks;

# Compares a response, and the log lines since the last look, with what a block expects: one test for each expectation,
# so that "plan tests" counts the same as under Test::Nginx::Socket.

use strict;
use warnings;
use Exporter 'import';
use Test::Builder;
use Test::LongString ();
use Time::HiRes qw(sleep time);
use NginxTest::Settings qw(error_log_file server_root);

our @EXPORT_OK = qw(check_access_log check_error_log check_response rewind_logs);

my $test = Test::Builder->new;
my $seen = 0;

sub _ports {
    my ($text) = @_;
    return $text if ref $text;
    $text =~ s/\$ServerPort\b/$NginxTest::Settings::Port/g;
    $text =~ s/\$ServerPortForClient\b/$NginxTest::Settings::ClientPort/g;
    return $text;
}

# What a section expects of request $i: an array has one for each request, and must be one if there are several.
sub _nth {
    my ($block, $section, $i, $many) = @_;
    my $value = $block->$section;
    return $value unless defined $value;
    return $value->[$i] if ref $value eq 'ARRAY';
    die "there are several requests, so $section must be an array\n" if $many;
    return $value;
}

sub _is_text {
    my ($got, $want, $title) = @_;
    return $test->like($got, $want, $title) if ref $want;
    return $test->is_eq($got, $want, $title) if $NginxTest::Settings::NoLongString;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return Test::LongString::is_string($got, $want, $title);
}

# "Name: value" lines; "! Name" says that the header is not there.
sub _header_lines {
    my ($text) = @_;
    my @lines;
    for (split /\n/, $text) {
        s/^\s+|\s+$//g;
        next if $_ eq '';
        if (s/^!\s*//) { push @lines, [$_, undef] }
        else           { my ($name, $value) = split /\s*:\s*/, $_, 2; push @lines, [$name, $value // ''] }
    }
    return @lines;
}

sub check_response {
    my ($block, $response, $i, $many, $round) = @_;
    my $name = $block->name;

    if (defined $block->error_code_like) {
        my $want = _nth($block, 'error_code_like', $i, $many);
        $test->like($response->code, qr/$want/sm, "$name - status code ok");
    } else {
        $test->is_eq($response->code, _nth($block, 'error_code', $i, $many) // 200, "$name - status code ok");
    }

    if (defined $block->raw_response_headers_like) {
        my $want = _nth($block, 'raw_response_headers_like', $i, $many);
        $test->like($response->raw_headers, qr/$want/s, "$name - raw resp headers like");
    }
    if (defined $block->raw_response_headers_unlike) {
        my $want = _nth($block, 'raw_response_headers_unlike', $i, $many);
        $test->unlike($response->raw_headers, qr/$want/s, "$name - raw resp headers unlike");
    }

    if (defined $block->response_headers) {
        for (_header_lines(_nth($block, 'response_headers', $i, $many) // '')) {
            my ($header, $want) = @$_;
            if (defined $want) { $test->is_eq($response->header($header) // '', _ports($want), "$name - header $header ok") }
            else { $test->unlike($response->raw_headers, qr/^\s*\Q$header\E\s*:/mi, "$name - header $header not present in the raw headers") }
        }
    } elsif (defined $block->response_headers_like) {
        for (_header_lines(_nth($block, 'response_headers_like', $i, $many) // '')) {
            my ($header, $want) = @$_;
            $test->like($response->header($header) // '', qr/^$want$/, "$name - header $header like ok");
        }
    }

    my $which = "(repeated req $round, req $i)";
    if (defined $block->response_body) {
        my $want = _nth($block, 'response_body', $i, $many);
        _is_text($response->body, defined $want ? _ports($want) : $want, "$name - response_body - response is expected $which");
    } elsif (defined $block->response_body_like) {
        my $want = _ports(_nth($block, 'response_body_like', $i, $many));
        $test->like($response->body, qr/$want/s, "$name - response_body_like - response is expected $which");
    } elsif (defined $block->response_body_unlike) {
        my $want = _ports(_nth($block, 'response_body_unlike', $i, $many));
        $test->unlike($response->body, qr/$want/s, "$name - response_body_unlike - response is expected $which");
    }
}

sub rewind_logs { $seen = 0 }

sub _lines {
    my ($file, $from) = @_;
    open my $in, '<', $file or return ([], 0);
    seek $in, $from, 0;
    my @lines = <$in>;
    return (\@lines, tell $in);
}

# Text is one literal piece a line; patterns are regular expressions or an array of either.
sub _patterns {
    my ($value) = @_;
    return grep { defined } @$value if ref $value eq 'ARRAY';
    return ref $value ? $value : split /\n+/, $value;
}

sub _matches {
    my ($line, $pattern) = @_;
    return ref $pattern && $line =~ /$pattern/ || $line =~ /\Q$pattern\E/;
}

sub _check_log {
    my ($block, $section, $log, $round, $lines, $reread) = @_;
    my $name = $block->name;

    if (defined $block->$section) {
        my @left  = _patterns($block->$section);
        my @wanted = @left;
        # nginx writes some lines after the last byte of the response.
        my $until = time + 1;
        while (1) {
            @left = grep { my $p = $_; !grep { _matches($_, $p) } @$lines } @wanted;
            last if !@left || !$reread || time > $until;
            sleep 0.02;
            $lines = $reread->();
        }
        my %missing = map { $_ => 1 } @left;
        for my $pattern (@wanted) {
            $test->ok(!$missing{$pattern}, "$name - pattern \"$pattern\" matches a line in $log (req $round)")
                or $test->diag(_tail($lines));
        }
    }

    my $none = "no_$section";
    if (defined $block->$none) {
        for my $pattern (_patterns($block->$none)) {
            my @found = grep { _matches($_, $pattern) } @$lines;
            $test->ok(!@found, "$name - pattern \"$pattern\" does not match a line in $log (req $round)")
                or $test->diag(_tail(\@found));
        }
    }
}

# What helps to see why: the last lines that are not debug.
sub _tail {
    my ($lines) = @_;
    my @tail = grep { !/\[debug\]/ } @$lines;
    @tail = @tail[-20 .. -1] if @tail > 20;
    return @tail ? join('', 'log: ', @tail) : 'the log has no line';
}

# Looks at the lines of error.log since the last look. $said is what an nginx that did not start wrote to stderr: before
# it has read "error_log" it can write nowhere else.
sub check_error_log {
    my ($block, $round, $said) = @_;
    my $name = $block->name;
    my $from = $seen;
    sleep 0.045;
    my $read = sub {
        (my $lines, $seen) = _lines(error_log_file(), $from);
        push @$lines, split /^/, $said if defined $said;
        return $lines;
    };
    my $lines = $read->();

    if (defined(my $grep = $block->grep_error_log)) {
        $grep = $grep->[$round] if ref $grep eq 'ARRAY';
        my $want = $block->grep_error_log_out // die "grep_error_log needs grep_error_log_out\n";
        $want = $want->[$round] if ref $want eq 'ARRAY';
        my $found = '';
        for my $line (@$lines) {
            next unless ref $grep ? $line =~ /($grep)/ : $line =~ /(\Q$grep\E)/;
            $found .= "$1\n" if index($1, "\n") < 0;
        }
        _is_text($found, $want, "$name - grep_error_log_out (req $round)");
    } elsif (defined $block->grep_error_log_out) {
        die "grep_error_log_out needs grep_error_log\n";
    }

    _check_log($block, 'error_log', 'error.log', $round, $lines, $read);

    # Never silent: what nginx calls serious, unless the block expects or excludes it by name.
    my $named = join "\n", map { defined $_ ? _patterns($_) : () } $block->error_log, $block->no_error_log;
    for my $level (qw(alert crit emerg)) {
        next if $named =~ /\[$level/;
        $test->diag("WARNING: $name - $_") for grep { /\[$level\]/ } @$lines;
    }
    for (grep { /exited on signal|\bAssertion .*?failed\b|panicked at/ } @$lines) {
        $test->ok(0, "$name - $_") unless defined $block->error_log && grep { /signal|Assert|panic/ } _patterns($block->error_log);
    }
}

sub check_access_log {
    my ($block, $round) = @_;
    return unless defined $block->access_log || defined $block->no_access_log;
    sleep 0.045;
    my $read = sub { (_lines(server_root() . '/logs/access.log', 0))[0] };
    _check_log($block, 'access_log', 'access.log', $round, $read->(), $read);
}

1;
