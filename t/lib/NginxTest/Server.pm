package NginxTest::Server;

# Writes nginx.conf for a block, starts nginx on it, and stops the nginx it started, by its pid.

use strict;
use warnings;
use Exporter 'import';
use File::Basename qw(dirname);
use File::Path qw(make_path remove_tree);
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);
use NginxTest::Settings qw(conf_file error_log_file expand html_dir pid_file server_root);

our @EXPORT_OK = qw(prepare start stop version);

sub _write {
    my ($file, $text) = @_;
    make_path(dirname($file));
    open my $out, '>', $file or die "cannot write $file: $!\n";
    binmode $out;
    print $out $text;
    close $out or die "cannot write $file: $!\n";
}

# The directories of the server root that are nginx's are made anew. Anything else in there is somebody's: it stays,
# and the run ends.
sub _clean_root {
    my $root = server_root();
    if (-d $root) {
        remove_tree("$root/conf", "$root/html", "$root/logs", glob("$root/*_temp"), glob("$root/*_cache"));
        rmdir $root or die "cannot remove $root: $! (keep a suite's own files in html/ or in a directory *_cache)\n";
    }
    make_path("$root/logs");
    _write(html_dir() . '/index.html',
        '<html><head><title>It works!</title></head><body>It works!</body></html>');
}

# Either text, each file after a line ">>> name [mtime]", or a list of [name, content, mtime].
sub _user_files {
    my ($files, $ports) = @_;
    return unless defined $files;
    unless (ref $files) {
        my @list;
        for my $line (split /^/, $files) {
            if ($line =~ />>> (\S+)(?:\s+(.+))?/) { push @list, [$1, '', $2] }
            elsif (@list)                         { $list[-1][1] .= $line }
        }
        $files = \@list;
    }
    die "user_files is neither text nor an array\n" unless ref $files eq 'ARRAY';
    for my $file (@$files) {
        my ($name, $content, $mtime) = @$file;
        my $path = $name =~ m{^/} ? $name : html_dir() . "/$name";
        _write($path, expand($content, $ports));
        next unless $mtime;
        local $ENV{TZ} = 'GMT';
        system('touch', '-t', $mtime, $path) == 0 or die "cannot set the time of $path to \"$mtime\"\n";
    }
}

sub _config {
    my ($block, $config, $ports) = @_;
    my $main    = $block->main_config // '';
    # Behind main_config, where Test::Nginx::Socket puts it.
    my $modules = join ' ', map {"load_module $_;"} split ' ', $NginxTest::Settings::LoadModules;
    my $level   = $block->log_level || NginxTest::Settings::log_level();
    my %part    = (
        main => expand("$main$modules", $ports),
        http => expand(scalar $block->http_config, $ports),
        conf => expand($config, $ports),
        post => expand(scalar $block->post_main_config, $ports),
    );
    my $name = $block->server_name // NginxTest::Settings::server_name();
    my $user = $> == 0 ? 'user root;' : '';
    my $env  = join "\n", map { /\s/ ? "env '$_';" : "env $_;" } @NginxTest::Settings::Env;
    my $index = $NginxTest::Settings::NoRootLocation ? ''
        : 'location / { root ' . html_dir() . '; index index.html index.htm; }';

    return <<"END";
worker_processes $NginxTest::Settings::Workers;
daemon on;
master_process $NginxTest::Settings::Master;
error_log @{[error_log_file()]} $level;
pid @{[pid_file()]};
$env

$part{main}

http {
    access_log @{[server_root()]}/logs/access.log;
    default_type text/plain;
    keepalive_timeout 68;

$part{http}

    server {
        listen $NginxTest::Settings::Port;
        server_name '$name';
        client_max_body_size 30M;

$NginxTest::Settings::Preamble
$part{conf}
        $index
    }
}

$part{post}

events {
    accept_mutex off;
    worker_connections $NginxTest::Settings::Connections;
}
$user
END
}

# Makes the server root for a block: configuration and files.
sub prepare {
    my ($block, $config) = @_;
    my %ports;
    _clean_root();
    my $text = _config($block, $config, \%ports);
    _user_files(scalar $block->user_files, \%ports);
    _write(conf_file(), $text);
}

sub _spawn {
    open my $out, '-|', qq{"$NginxTest::Settings::Binary" -p "@{[server_root()]}/" -c "@{[conf_file()]}" 2>&1 >/dev/null}
        or die "cannot run $NginxTest::Settings::Binary: $!\n";
    my $said = do { local $/; <$out> } // '';
    close $out;
    return ($?, $said);
}

# Starts nginx once. Returns (wait status, what it said). With $patient, waits while the port is still taken.
sub start {
    my ($patient) = @_;
    my $until = time + 30;
    while (1) {
        my ($status, $said) = _spawn();
        if ($status == 0) {
            # "daemon on" returns before the pid file is written.
            for (1 .. 200) { last if -s pid_file(); sleep 0.01 }
            return (0, $said);
        }
        return ($status, $said) unless $patient && $said =~ /Address already in use/ && time < $until;
        sleep 0.2;
    }
}

sub _pid {
    open my $in, '<', pid_file() or return;
    my $pid = <$in>;
    return defined $pid && $pid =~ /^(\d+)$/ ? $1 : undef;
}

# Alive, and not a zombie of ours or of a container's first process that reaps nobody.
sub _alive {
    my ($pid) = @_;
    waitpid $pid, WNOHANG;
    return 0 unless kill 0, $pid;
    open my $in, '<', "/proc/$pid/stat" or return kill 0, $pid;
    return (<$in> // '') !~ /\) [ZX] /;
}

# Ends the nginx of this server root: gracefully, then by force.
sub stop {
    my $pid = _pid() or return;
    my $until = time + NginxTest::Settings::timeout();
    kill QUIT => $pid;
    while (_alive($pid) && time < $until) { sleep 0.02 }
    return unless _alive($pid);
    warn "nginx $pid did not end within " . NginxTest::Settings::timeout() . " s of SIGQUIT: killed\n";
    my @children = _children($pid);
    kill TERM => $pid;
    for (1 .. 50) { last unless _alive($pid); sleep 0.02 }
    kill KILL => grep { _alive($_) } $pid, @children;
}

sub _children {
    my ($pid) = @_;
    open my $in, '<', "/proc/$pid/task/$pid/children" or return;
    return split ' ', <$in> // '';
}

# The nginx's version as a number that compares: 1.022001.
sub version {
    my $said = `"$NginxTest::Settings::Binary" -v 2>&1` // '';
    return sprintf '%d.%03d%03d', $1, $2, $3 if $said =~ m{/(\d+)\.(\d+)\.(\d+)};
    die "cannot run $NginxTest::Settings::Binary (TEST_NGINX_BINARY names another nginx): $said\n";
}

1;
