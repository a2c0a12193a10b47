package AmeshTest;

# What the suites of the module share: ports, the "amesh" block, and xDS in short.
#
# Sections of its own, all in YAML:
#   routes    the routes of the virtual host, a list
#   vhost     more fields of the virtual host
#   hcm       more fields of the connection manager
#   filters   http filters before the router, a list
#   xds       more resources, separated by "---" as in a file
# A block with "routes" gets a listener for the address of the test's server, a route table, and the clusters that
# clusters() makes. A block without any of them gets "xds" alone.

use v5.26;
use strict;
use warnings;

use Cwd qw(abs_path);
use Exporter qw(import);

our @EXPORT = qw(use_amesh backend);

my $T = 'type.googleapis.com/envoy';
my $root = abs_path('.');

# The library loads modules after "main_config", where the "amesh" block already needs them; so it is done here.
die "use AmeshTest before Test::Nginx::Socket\n" if $INC{'Test/Nginx/Socket.pm'};
my $modules = join '', map { "load_module $_;\n" } split ' ', delete $ENV{TEST_NGINX_LOAD_MODULES} // '';
die "TEST_NGINX_LOAD_MODULES names no modules: give the paths of nginx's stream module and of this one\n" unless $modules;

# nginx's Lua module and what it needs, where the nginx of the run has it (TEST_NGINX_LUA_MODULES names them for one that is not
# the installed one).
my @lua = split ' ', $ENV{TEST_NGINX_LUA_MODULES}
    // join ' ', grep { !$ENV{TEST_NGINX_BINARY} && -e } map {"/usr/lib/nginx/modules/$_.so"} qw(ndk_http_module ngx_http_lua_module);

# Ports of a suite, and where this module's configuration snippets are.
sub ports {
    my $port = $ENV{TEST_NGINX_SERVER_PORT} // $ENV{TEST_NGINX_PORT} // 1984;
    $ENV{TEST_NGINX_BACKEND_PORT} = $port + 1;
    $ENV{TEST_NGINX_BACKEND2_PORT} = $port + 2;
    $ENV{TEST_NGINX_CLOSED_PORT} = $port + 3;
    $ENV{TEST_NGINX_STREAM_PORT} = $port + 4;
    $ENV{TEST_NGINX_INTERNAL_PORT} = $port + 5;
    $ENV{TEST_NGINX_EXTRA_PORT} = $port + 6;
    $ENV{TEST_NGINX_AMESH_CONF} = "$root/nginx-conf/amesh";
    return $port;
}

# Servers of the upstreams: they say what they were asked.
sub backend {
    return <<'END';
    server {
        listen 127.0.0.1:$TEST_NGINX_BACKEND_PORT;
        listen 127.0.0.1:$TEST_NGINX_BACKEND2_PORT;
        merge_slashes off;
        underscores_in_headers on;
        keepalive_requests 100000;
        access_log off;
        location / { return 200 "$server_port $request_method $request_uri host=$http_host\n"; }
        location ^~ /echo/ {
            return 200 "xfp=$http_x_forwarded_proto xff=$http_x_forwarded_for id=$http_x_request_id attempt=$http_x_envoy_attempt_count original=$http_x_envoy_original_path a=$http_x_a b=$http_x_b xfcc=$http_x_forwarded_client_cert conn=$http_connection fwdhost=$http_x_forwarded_host\n";
        }
        location ^~ /headers/ {
            add_header X-Up one;
            add_header X-Gone here;
            return 200 "up\n";
        }
        location ^~ /connection/ { return 200 "$connection_requests\n"; }
        location ^~ /reset/ { return 444; }
        location ^~ /length/ { return 200 "$request_method $http_content_length\n"; }
    }
END
}

# Has the blocks of the suite use the module. http => 1: the server of a block takes what the workload sends.
# lua => 1: with nginx's Lua module and the library of lualib/.
sub use_amesh {
    my (%with) = @_;
    if ($with{lua}) {
        skip('this nginx has no Lua module (apt-get install libnginx-mod-http-lua)') if @lua != 2;
        $modules = join '', map({"load_module $_;\n"} @lua), $modules;
    }
    ports();
    $ENV{TEST_NGINX_HTML_DIR} ||= main::html_dir();
    $ENV{TEST_NGINX_SERVROOT} ||= main::server_root();
    if (my $own = NginxTest::Runner->can('own_sections')) { $own->(qw(xds routes vhost hcm filters)) }
    # The thread of the module lives in the master.
    main::master_on();
    main::no_root_location();
    &main::add_block_preprocessor(sub { prepare($_[0], %with) });
}

# Ends a suite whose plan is made already ("no_plan").
sub skip {
    my ($reason) = @_;
    require Test::Builder;
    Test::Builder->new->no_ending(1);
    print "1..0 # SKIP $reason\n";
    exit 0;
}

sub value { my ($block, $section) = @_; scalar $block->$section }

sub prepare {
    my ($block, %with) = @_;
    my $main = value($block, 'main_config') // '';
    # A block that writes its own is about that one.
    $main = "amesh { zone mesh 16m; server file:\$TEST_NGINX_HTML_DIR/xds; }\n$main" unless $with{bare};
    $block->set_value('main_config', "$modules$main\n");
    my $path = $with{lua} ? "lua_package_path '$root/lualib/?.lua;;';\n" : '';
    $block->set_value('http_config', $path . ($with{http} ? "upstream amesh { amesh; }\n" : '') . backend() . (value($block, 'http_config') // ''));
    my $config = value($block, 'config') // '';
    $config = "amesh outbound;\n" . server_conf() . $config if $with{http};
    $block->set_value('config', $config);
    my $xds = value($block, 'xds') // '';
    $xds = join "---\n", mesh($block), ($xds =~ /\S/ ? $xds : ()) if defined value($block, 'routes');
    my @files = ref(value($block, 'user_files') // '') ? @{ $block->user_files } : ();
    $block->set_value('user_files', [ @files, [ 'xds/mesh.yaml', expand($xds) ] ]);
}

# The snippet for a server, but for what the library has written into its server itself.
sub server_conf {
    open my $in, '<', "$root/nginx-conf/amesh/server.conf" or die "cannot read nginx-conf/amesh/server.conf: $!";
    return join '', grep { !/^client_max_body_size\s/ } <$in>;
}

# The real library leaves variables in files as they are.
sub expand { $_[0] =~ s/\$(TEST_NGINX_[A-Z0-9_]+)/$ENV{$1} \/\/ die "no $1"/ger }

sub indent {
    my ($text, $n) = @_;
    return ($text // '') =~ s/^(?=.)/' ' x $n/gemr;
}

# Listener, route table and clusters.
sub mesh {
    my ($block) = @_;
    my $port = $ENV{TEST_NGINX_SERVER_PORT};
    my ($routes, $vhost) = (indent(value($block, 'routes'), 2), indent(value($block, 'vhost'), 2));
    my ($hcm, $filters) = (indent(value($block, 'hcm'), 6), indent(value($block, 'filters'), 6));
    return (<<"END", <<"END", clusters());
"\@type": $T.config.listener.v3.Listener
name: web
address: {socket_address: {address: 127.0.0.1, port_value: $port}}
traffic_direction: OUTBOUND
bind_to_port: false
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "\@type": $T.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: web
      rds: {route_config_name: web-routes, config_source: {ads: {}}}
$hcm
      http_filters:
$filters
      - name: envoy.filters.http.router
        typed_config: {"\@type": $T.extensions.filters.http.router.v3.Router}
END
"\@type": $T.config.route.v3.RouteConfiguration
name: web-routes
virtual_hosts:
- name: all
  domains: ["*"]
$vhost
  routes:
$routes
END
}

# "one" and "two" with one endpoint each, "both" with these two, "down" whose port nobody listens on, "flaky" with that
# endpoint and a good one, "empty" without endpoints.
sub clusters {
    my %ports = (
        one => ['BACKEND'],
        two => ['BACKEND2'],
        both => [qw(BACKEND BACKEND2)],
        down => ['CLOSED'],
        flaky => [qw(CLOSED BACKEND)],
        empty => [],
    );
    return map { cluster($_, map { $ENV{"TEST_NGINX_${_}_PORT"} } @{ $ports{$_} }) } sort keys %ports;
}

sub cluster {
    my ($name, @ports) = @_;
    my $endpoints = join ', ', map { "{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $_}}}}" } @ports;
    my $load = @ports ? "{cluster_name: $name, endpoints: [{lb_endpoints: [$endpoints]}]}" : "{cluster_name: $name}";
    return <<"END";
"\@type": $T.config.cluster.v3.Cluster
name: $name
type: STATIC
connect_timeout: 2s
load_assignment: $load
END
}

1;
