package NginxTest::Settings;

# What a suite, or the environment, sets for a run: the functions and variables of Test::Nginx::Socket, by its names
# and with its defaults.

use strict;
use warnings;
use Exporter 'import';
use File::Spec;
use IO::Socket::INET;

our @EXPORT_OK = qw(
    add_block_preprocessor add_cleanup_handler config_preamble env_to_nginx html_dir log_level master_off master_on
    master_process_enabled no_long_string no_root_location no_shuffle repeat_each server_addr server_name server_port
    server_port_for_client server_root timeout worker_connections workers
    conf_file error_log_file expand pid_file
);

our $Binary      = $ENV{TEST_NGINX_BINARY}       || 'nginx';
our $Port        = $ENV{TEST_NGINX_SERVER_PORT}  || $ENV{TEST_NGINX_PORT} || 1984;
our $LogLevel    = $ENV{TEST_NGINX_LOG_LEVEL}    || 'debug';
our $Timeout     = $ENV{TEST_NGINX_TIMEOUT}      || 3;
our $Master      = $ENV{TEST_NGINX_MASTER_PROCESS} || 'off';
our $NoShuffle   = $ENV{TEST_NGINX_NO_SHUFFLE}   || 0;
our $LoadModules = $ENV{TEST_NGINX_LOAD_MODULES} || '';
our $Verbose     = $ENV{TEST_NGINX_VERBOSE}      || 0;

our ($Addr, $ServerName, $Workers, $Connections, $Repeat) = ('127.0.0.1', 'localhost', 1, 64, 1);
our ($NoRootLocation, $NoLongString, $Preamble) = (0, 0, '');
our (@Preprocessors, @Cleanups, @Env);

$Port = free_port() if $ENV{TEST_NGINX_RANDOMIZE};
our $ClientPort = $ENV{TEST_NGINX_CLIENT_PORT} || $Port;
our $Root       = File::Spec->rel2abs(
    $ENV{TEST_NGINX_RANDOMIZE} ? "t/servroot_$Port" : $ENV{TEST_NGINX_SERVROOT} || 't/servroot');

$ENV{TEST_NGINX_SERVER_PORT} //= $Port;
$ENV{TEST_NGINX_SERVER_PORT} = $Port if $ENV{TEST_NGINX_RANDOMIZE};
$ENV{TEST_NGINX_SERVER_ROOT} = $Root;
$ENV{TEST_NGINX_HTML_DIR} = "$Root/html";

sub repeat_each            { $Repeat      = shift if @_; $Repeat }
sub workers                { $Workers     = shift if @_; $Workers }
sub worker_connections     { $Connections = shift if @_; $Connections }
sub log_level              { $LogLevel    = shift if @_; $LogLevel }
sub timeout                { $Timeout     = shift if @_; $Timeout }
sub server_addr            { $Addr        = shift if @_; $Addr }
sub server_name            { $ServerName  = shift if @_; $ServerName }
sub server_port            { $Port        = shift if @_; $Port }
sub server_port_for_client { $ClientPort  = shift if @_; $ClientPort }
sub config_preamble        { $Preamble    = shift }
sub master_on              { $Master = 'on' }
sub master_off             { $Master = 'off' }
sub master_process_enabled { $Master = shift() ? 'on' : 'off' if @_; $Master }
sub no_shuffle             { $NoShuffle = 1 }
sub no_root_location       { $NoRootLocation = 1 }
sub no_long_string         { $NoLongString = 1 }
sub env_to_nginx           { push @Env, @_ }
sub add_cleanup_handler    { unshift @Cleanups, shift }
sub add_block_preprocessor (&) { unshift @Preprocessors, shift }

sub server_root    { $Root }
sub html_dir       { "$Root/html" }
sub conf_file      { "$Root/conf/nginx.conf" }
sub error_log_file { "$Root/logs/error.log" }
sub pid_file       { "$Root/logs/nginx.pid" }

# A port of 127.0.0.1 that nobody listens on, below the kernel's range for outgoing connections.
sub free_port {
    my %used = map { $_ => 1 } grep { defined } @_;
    for (1 .. 1000) {
        my $port = 2000 + int rand 30000;
        next if $used{$port};
        my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Proto => 'tcp') or next;
        close $socket;
        return $port;
    }
    die "no free port on 127.0.0.1 after 1000 attempts\n";
}

# Puts the environment's value in place of every $TEST_NGINX_..., and a free port, the same all over a block, in place
# of every $TEST_NGINX_RAND_PORT_n. Dies with what is missing.
sub expand {
    my ($text, $ports) = @_;
    return '' unless defined $text;
    my $value = sub {
        my ($name) = @_;
        return $ports->{$name} if defined $ports->{$name};
        return $ports->{$name} = free_port($Port, values %$ports) if $name =~ /^TEST_NGINX_RAND_PORT_\d+$/;
        return $ENV{$name} // die "the environment has no $name\n";
    };
    $text =~ s/\$(TEST_NGINX_[_A-Z0-9]+)/$value->("$1")/eg;
    return $text;
}

1;
