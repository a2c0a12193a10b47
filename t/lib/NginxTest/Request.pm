package NginxTest::Request;

# What a block sends: a list of requests, each a list of packets {value, delay_before}.

use strict;
use warnings;
use Exporter 'import';
use NginxTest::Settings ();

our @EXPORT_OK = qw(requests);

sub requests {
    my ($block) = @_;

    if (defined(my $raw = $block->raw_request)) {
        return [[map { { value => $_ } } ref $raw ? @$raw : $raw]];
    }

    my $headers = $block->more_headers // '';
    my $nth     = sub {
        my ($i) = @_;
        return $headers unless ref $headers;
        return $headers->[$i] // die "more_headers has nothing for request $i\n";
    };

    if (my $list = $block->pipelined_requests) {
        die "pipelined_requests is no array\n" unless ref $list eq 'ARRAY';
        my $i    = 0;
        my $text = join '', map {
            my $last = $i == $#$list;
            join '', map { $_->{value} } @{_build([$_], $nth->($i++), $last ? 'close' : 'keep-alive')};
        } @$list;
        return [[{ value => $text }]];
    }

    my $request = $block->request;
    die "no request\n" unless defined $request;
    my $i = 0;
    return [map { _build(ref $_ ? $_ : [$_], $nth->($i++), 'close') } ref $request ? @$request : $request];
}

# Makes "METHOD [path [version]]\nbody" a request: the missing parts of the request line, Host, Connection,
# Content-Length and the block's headers are added. A request in packets is cut where its author cut it.
sub _build {
    my ($packets, $more, $connection) = @_;
    my @packets = map { ref $_ ? {%$_} : { value => $_ } } @$packets;

    my $source = join '', map { $_->{value} } @packets;
    my $shift  = 0;
    # Blank lines and comments before the request line are not sent.
    if ($source =~ /^((?:\s*\#[^\n]*\n|\s)+)/) { $shift = length $1; $source = substr $source, $shift }
    my ($line, $body) = split /\n/, $source, 2;
    $body //= '';
    my ($method, $path, $version) = split ' ', $line // '';
    die "the request line is empty\n" unless defined $method;
    $path    //= '/';
    $version //= 'HTTP/1.1';
    my $body_at = $shift + length($line) + 1;

    my ($headers, $chunked) = ('', 0);
    for (grep { !/^\s*\#/ && /\S/ } split /\r?\n/, $more) {
        my ($name, $value) = split /:\s*/, $_, 2;
        $value //= '';
        $chunked = 1 if lc $name eq 'transfer-encoding' && $value eq 'chunked';
        $headers .= "$name: $value\r\n";
    }
    my $head = "$method $path $version\r\n";
    $head .= "Host: $NginxTest::Settings::ServerName\r\n" unless $headers =~ /^Host:/mi;
    $head .= "Connection: $connection\r\n" unless $headers =~ /^Connection/mi;
    $head .= $headers;
    if ($body ne '' && !$chunked && $headers !~ /^Content-Length:/m) {
        $body_at += length $1 if $body =~ s/^(\s+)//;
        $body =~ s/\s+$//;
        $head .= 'Content-Length: ' . length($body) . "\r\n";
    }
    $head .= "\r\n";

    # Where a packet ended in the source, it ends in what is sent: in the request line at the same character, in the
    # body at the same byte.
    my ($text, $at, $sent) = ("$head$body", 0, 0);
    for my $packet (@packets) {
        $at += length $packet->{value};
        my $end = $at >= $body_at ? length($head) + $at - $body_at : $at - $shift;
        $end = 0            if $end < 0;
        $end = length $text if $packet == $packets[-1] || $end > length $text;
        $packet->{value} = substr $text, $sent, $end - $sent;
        $sent = $end;
    }
    return \@packets;
}

1;
