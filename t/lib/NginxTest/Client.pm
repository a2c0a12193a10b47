package NginxTest::Client;

# Sends a request's packets over a plain socket and reads until nginx closes.

use strict;
use warnings;
use Exporter 'import';
use IO::Select;
use IO::Socket::INET;
use Time::HiRes qw(sleep time);
use NginxTest::Settings ();

our @EXPORT_OK = qw(exchange seconds);

# "200ms", "2s", "2" as seconds.
sub seconds {
    my ($text) = @_;
    return $1 / 1000 if $text =~ /^([\d.]+)ms$/;
    return $1        if $text =~ /^([\d.]+)s?$/;
    die "\"$text\" is no time\n";
}

sub _connect {
    my ($address) = @_;
    my $until = time + 5;
    while (1) {
        my $socket = IO::Socket::INET->new(
            PeerAddr => $address, PeerPort => NginxTest::Settings::server_port_for_client(), Proto => 'tcp');
        return $socket if $socket;
        die "cannot connect to $address:" . NginxTest::Settings::server_port_for_client() . ": $!\n" if time > $until;
        sleep 0.02;
    }
}

# exchange(packets, block): what came back until nginx closed. Dies when it takes longer than the block's timeout;
# a block with "abort" expects just that, and gets what came until then.
sub exchange {
    my ($packets, $block) = @_;
    my $limit = seconds($block->timeout // NginxTest::Settings::timeout());
    my $pause = defined $block->raw_request_middle_delay ? seconds($block->raw_request_middle_delay) : 0;
    my $socket = _connect($block->server_addr_for_client // NginxTest::Settings::server_addr());
    $socket->blocking(0);
    local $SIG{PIPE} = 'IGNORE';

    my ($got, $first) = ('', 1);
    for my $packet (@$packets) {
        my $delay = defined $packet->{delay_before} ? seconds($packet->{delay_before}) : $first ? 0 : $pause;
        sleep $delay if $delay;
        $first = 0;
        my $left = $packet->{value};
        while (length $left) {
            my $n = syswrite $socket, $left;
            if (defined $n) { substr($left, 0, $n) = ''; next }
            # nginx may answer and close before it has read everything.
            last unless $!{EAGAIN};
            my ($readable) = IO::Select->select(IO::Select->new($socket), IO::Select->new($socket), undef, $limit);
            die "nginx took no data for $limit s\n" unless defined $readable;
            sysread $socket, $got, 65536, length $got if @$readable;
        }
    }
    if (defined $block->shutdown) { $socket->shutdown($block->shutdown =~ /^\d+$/ ? $block->shutdown : 1) }

    my $select = IO::Select->new($socket);
    while (1) {
        unless ($select->can_read($limit)) {
            last if defined $block->abort;
            die "nginx did not end the connection within $limit s; so far came: " . _printable($got) . "\n";
        }
        my $n = sysread $socket, $got, 65536, length $got;
        last if defined $n ? $n == 0 : !$!{EAGAIN};
    }
    close $socket;
    return $got;
}

sub _printable {
    my ($text) = @_;
    $text = substr($text, 0, 500) . '...' if length $text > 500;
    $text =~ s/\r/\\r/g;
    $text =~ s/\n/\\n/g;
    return "\"$text\"";
}

1;
