package NginxTest::Response;

# One HTTP response, cut off the front of what a connection received.

use strict;
use warnings;
use Exporter 'import';

our @EXPORT_OK = qw(parse);

# parse(bytes, is it the answer to HEAD): the response, and the bytes after it. Dies when the body is not what the
# headers announce.
sub parse {
    my ($bytes, $head) = @_;
    my $self = bless { code => '', raw_headers => '', headers => {}, body => '' }, __PACKAGE__;
    return ($self, '') if $bytes eq '';

    if ($bytes =~ /\A(.*?\r\n)\r\n/s) {
        $self->{raw_headers} = $1;
        $bytes = substr $bytes, length($1) + 2;
    } else {
        # No end of headers, HTTP/0.9 perhaps: everything is body.
        $self->{code} = $1 if $bytes =~ m{\AHTTP/\S+ (\d+)};
        $self->{body} = $bytes;
        return ($self, '');
    }
    my ($status, @lines) = split /\r\n/, $self->{raw_headers};
    $self->{code} = $1 if $status =~ m{^HTTP/\S+ (\d+)};
    for (@lines) {
        my ($name, $value) = split /\s*:\s*/, $_, 2;
        push @{ $self->{headers}{ lc $name } }, $value // '';
    }

    return ($self, $bytes) if $self->{code} =~ /^(?:1\d\d|204|304)$/ || $head;
    if (($self->header('Transfer-Encoding') // '') eq 'chunked') {
        ($self->{body}, $bytes) = _unchunk($bytes);
    } elsif (defined(my $length = $self->header('Content-Length'))) {
        die "the body ends after @{[length $bytes]} of $length bytes\n" if length $bytes < $length;
        $self->{body} = substr $bytes, 0, $length;
        $bytes = substr $bytes, $length;
    } else {
        $self->{body} = $bytes;
        $bytes = '';
    }
    return ($self, $bytes);
}

sub _unchunk {
    my ($bytes) = @_;
    my $body = '';
    while ($bytes =~ /\G[ \t]*([0-9A-Fa-f]+)[ \t]*\r\n/gc) {
        my $size = hex $1;
        my $at   = pos $bytes;
        if ($size == 0) {
            last unless substr($bytes, $at, 2) eq "\r\n";
            return ($body, substr $bytes, $at + 2);
        }
        last if length $bytes < $at + $size + 2 || substr($bytes, $at + $size, 2) ne "\r\n";
        $body .= substr $bytes, $at, $size;
        pos($bytes) = $at + $size + 2;
    }
    die "the chunked body is broken or cut short after " . length($body) . " bytes\n";
}

# All values of a header, joined as one list; undef if it is not there.
sub header {
    my ($self, $name) = @_;
    my $values = $self->{headers}{ lc $name } or return undef;
    return join ', ', @$values;
}

sub code        { $_[0]{code} }
sub body        { $_[0]{body} }
sub raw_headers { $_[0]{raw_headers} }

1;
