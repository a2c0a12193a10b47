# patches/nginx-init-master.patch on the nginx that the nginx-src crate carries: it applies, and a master then calls a
# module's init_master once, before its workers, and nobody else does.
use strict;
use warnings;
use Cwd qw(abs_path);
use File::Temp qw(tempdir);
use POSIX qw(WNOHANG);
use Test::More;
use Time::HiRes qw(sleep time);

my $source = abs_path('build/nginx-1.28') // '';
run('.ci/nginx-tree vendored build/nginx-1.28'), $source = abs_path('build/nginx-1.28') unless -x "$source/objs/nginx";
my $dir = tempdir(CLEANUP => 1);
my $pid;

# The tree is built: with the patch on, one file is compiled anew.
run("cp -a '$source' '$dir/nginx'");
like(run("cd '$dir/nginx' && patch -p1 --forward < '" . abs_path('patches/nginx-init-master.patch') . "'"),
    qr{^patching file src/os/unix/ngx_process_cycle\.c$}, 'the patch applies as it is');
run("make -C '$dir/nginx'");

# A module that says who called it.
write_file("$dir/probe.c", <<'C');
#include <ngx_config.h>
#include <ngx_core.h>

static ngx_int_t init_master(ngx_log_t *log) {
    ngx_log_error(NGX_LOG_NOTICE, log, 0, "probe: init_master in %P", ngx_getpid());
    return NGX_OK;
}

static ngx_int_t init_process(ngx_cycle_t *cycle) {
    ngx_log_error(NGX_LOG_NOTICE, cycle->log, 0, "probe: init_process in %P", ngx_getpid());
    return NGX_OK;
}

static ngx_core_module_t probe_ctx = { ngx_string("probe"), NULL, NULL };
static ngx_command_t probe_commands[] = { ngx_null_command };

ngx_module_t probe_module = {
    NGX_MODULE_V1, &probe_ctx, probe_commands, NGX_CORE_MODULE,
    init_master, NULL, init_process, NULL, NULL, NULL, NULL, NGX_MODULE_V1_PADDING
};

ngx_module_t *ngx_modules[] = { &probe_module, NULL };
char *ngx_module_names[] = { "probe", NULL };
char *ngx_module_order[] = { NULL };
C
my $include = join ' ', map { "-I '$dir/nginx/$_'" } qw(src/core src/event src/event/modules src/os/unix objs);
run("cc -shared -fPIC $include -o '$dir/probe.so' '$dir/probe.c'");

for my $daemon (qw(off on)) {
    my $log = start("daemon $daemon; master_process on; worker_processes 2;");
    my ($master) = pid();
    is_deeply([$log =~ /probe: init_master in (\d+)/g], [$master], "daemon $daemon: the master calls it, once");
    cmp_ok(index($log, 'probe: init_master'), '<', index($log, 'probe: init_process'), "daemon $daemon: before the workers");

    kill HUP => $master;
    $log = wait_for(qr/(?:probe: init_process.*){4}/s);
    is(() = $log =~ /probe: init_master/g, 1, "daemon $daemon: a reload does not call it");
    stop();
}

my $log = start('daemon off; master_process off;');
unlike($log, qr/probe: init_master/, 'there is no master, and nobody calls it, with master_process off');
stop();

unlink "$dir/run/logs/error.log";
run("'$dir/nginx/objs/nginx' -p '$dir/run/' -t");
unlike(read_file("$dir/run/logs/error.log"), qr/probe:/, 'nginx -t does not call it');

done_testing();

# Ends the suite with the output of what failed.
sub run {
    my ($command) = @_;
    my $said = `{ $command ; } 2>&1`;
    BAIL_OUT("$command:\n$said") if $?;
    return $said;
}

sub write_file { my ($file, $text) = @_; open my $out, '>', $file or die "$file: $!"; print $out $text; close $out }
sub read_file { my ($file) = @_; open my $in, '<', $file or return ''; local $/; return <$in> // '' }

# Starts nginx and returns its log once a worker runs.
sub start {
    my ($mode) = @_;
    run("rm -rf '$dir/run' && mkdir -p '$dir/run/conf' '$dir/run/logs'");
    write_file("$dir/run/conf/nginx.conf",
        "load_module $dir/probe.so; $mode pid nginx.pid; error_log logs/error.log notice; events {}");
    $pid = fork // die "fork: $!";
    exec "$dir/nginx/objs/nginx", '-p', "$dir/run/" or die "exec: $!" unless $pid;
    return wait_for(qr/probe: init_process/);
}

sub wait_for {
    my ($pattern) = @_;
    my $until = time + 10;
    while (time < $until) {
        my $log = read_file("$dir/run/logs/error.log");
        return $log if $log =~ $pattern;
        sleep 0.02;
    }
    BAIL_OUT("no $pattern in the log:\n" . read_file("$dir/run/logs/error.log"));
}

sub pid { read_file("$dir/run/nginx.pid") =~ /(\d+)/ }

sub stop {
    my ($master) = pid() or return;
    kill TERM => $master;
    waitpid $pid, 0;
    for (1 .. 200) { last unless -e "$dir/run/nginx.pid"; sleep 0.02 }
    undef $pid;
}

END { my $status = $?; stop() if $pid && -d $dir; $? = $status }
