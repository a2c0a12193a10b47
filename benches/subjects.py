"""The subjects: stock nginx, nginx with the module, Envoy; each with a static mesh, the last two with a control plane."""

import json
import os
import pathlib
import shutil
import subprocess

from process import Directory, Process, free_ports

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parent
NGINX = shutil.which(os.environ.pop("NGINX", "nginx"))
MODULE = pathlib.Path(os.environ.get("MODULE", TOP / "build/ngx_amesh_module.so"))
STREAM = pathlib.Path("/usr/lib/nginx/modules/ngx_stream_module.so")
PROTO = "type.googleapis.com/envoy."


def build(script, *args):
    """(path of a part that suites and benches share, None), or (None, why it cannot be had)."""
    done = subprocess.run([TOP / "t" / script, *args], capture_output=True, text=True)
    words = done.stderr.strip().splitlines()
    return (done.stdout.strip(), None) if done.returncode == 0 else (None, words[-1] if words else script)


def missing(subject):
    """Why a subject cannot be run here; None if it can."""
    if not shutil.which("wrk"):
        return "there is no wrk on PATH (Debian: wrk)"
    if not NGINX:
        return "there is no nginx on PATH (or set NGINX)"
    if subject == "amesh" and not MODULE.exists():
        return f"there is no {MODULE}: build it by make, or set MODULE"
    if subject == "envoy":
        return build("istio/build.sh", "envoy")[1]
    if subject not in ("nginx", "amesh"):
        return "the subjects are nginx, amesh and envoy"
    return None


def template(name, directory, **values):
    """A configuration of conf/ with its @NAMES@ filled in."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    values["RUN"] = directory.path
    values["TEMP"] = " ".join(f"{kind}_temp_path {directory.path}/{kind};" for kind in kinds)
    text = (HERE / "conf" / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return directory.write(name, text)


def nginx_command(directory, conf):
    return [NGINX, "-p", directory.path, "-e", directory.path / "nginx.log", "-c", conf]


def upstream():
    """What all subjects forward to; its ports are `port` and `other`."""
    a, b = free_ports(2)
    directory = Directory()
    process = Process(
        "upstream", nginx_command(directory, template("upstream.conf", directory, A=a, B=b)), directory, a
    )
    process.other = b
    return process.wait()


def prefix(text):
    """A route match as Envoy writes it."""
    return {"prefix": text}


def regex(pattern):
    """A route match as Envoy writes it: the whole path matches."""
    return {"safe_regex": {"regex": pattern}}


def static(subject, behind, hosts, matches):
    """A subject that needs no control plane, with so many virtual hosts that have a route for each of these matches, and
    one for everything else."""
    start = {"nginx": static_nginx, "amesh": static_amesh, "envoy": static_envoy}[subject]
    return start(behind, hosts, matches).wait()


def location(match):
    """A match of Envoy's as nginx writes it."""
    return f"^~ {match['prefix']}" if "prefix" in match else f"~ ^{match['safe_regex']['regex']}$"


def static_nginx(behind, hosts, matches):
    (port,) = free_ports(1)
    locations = [f"location {location(match)} {{ proxy_pass http://up; }}" for match in matches]
    locations.append("location / { proxy_pass http://up; }")
    body = "\n".join(locations)
    servers = [f"server {{ listen 127.0.0.1:{port}; server_name v{i}.mesh.test; {body} }}" for i in range(hosts)]
    directory = Directory()
    conf = template("nginx.conf", directory, A=behind.port, SERVERS="\n".join(servers))
    return Process("nginx", nginx_command(directory, conf), directory, port)


def listener(port, table):
    """A listener of Envoy's, as JSON, with an inline route table or the name of one that comes over ADS."""
    routes = {"route_config": table}
    if isinstance(table, str):
        routes = {"rds": {"route_config_name": table, "config_source": {"ads": {}, "resource_api_version": "V3"}}}
    router = {"@type": PROTO + "extensions.filters.http.router.v3.Router"}
    manager = {
        "@type": PROTO + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        **routes,
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {"name": "mesh", "address": address(port), "filter_chains": [{"filters": filters}]}


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(name, port):
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


def table(hosts, matches):
    """A route table; the last route of each virtual host takes everything."""
    each = [{"match": match, "route": {"cluster": "up"}} for match in [*matches, prefix("/")]]
    return {
        "name": "mesh",
        "virtual_hosts": [{"name": f"v{i}", "domains": [f"v{i}.mesh.test"], "routes": each} for i in range(hosts)],
    }


def typed(kind, message):
    return {"@type": PROTO + kind, **message}


def static_amesh(behind, hosts, matches):
    (port,) = free_ports(1)
    directory = Directory()
    resources = directory.path / "xds"
    resources.mkdir()
    for name, message in (
        ("listener", typed("config.listener.v3.Listener", listener(port, "mesh"))),
        ("routes", typed("config.route.v3.RouteConfiguration", table(hosts, matches))),
        ("cluster", typed("config.cluster.v3.Cluster", cluster("up", behind.port))),
    ):
        (resources / f"{name}.json").write_text(json.dumps(message))
    return amesh(directory, port, f"file:{resources}")


def amesh(directory, port, source):
    status, internal, http2 = free_ports(3)
    snippets = directory.path / "amesh"
    shutil.copytree(TOP / "nginx-conf/amesh", snippets)
    http = snippets / "http.conf"
    # Another nginx on this machine may have the listener's own port.
    http.write_text(http.read_text().replace("15081", str(internal)).replace("15082", str(http2)))
    version = subprocess.run([NGINX, "-V"], capture_output=True, text=True).stderr
    stream = f"load_module {STREAM};" if STREAM.exists() and "--with-stream=dynamic" in version else ""
    values = {"STREAM": stream, "MODULE": MODULE, "SOURCE": source, "PORT": port, "STATUS": status}
    conf = template("amesh.conf", directory, **values)
    return Process("amesh", nginx_command(directory, conf), directory, port, status)


def envoy(directory, port, config):
    path, _ = build("istio/build.sh", "envoy")
    conf = directory.write("envoy.json", json.dumps(config))
    command = [path, "-c", conf, "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return Process("envoy", command, directory, port)


def static_envoy(behind, hosts, matches):
    (port,) = free_ports(1)
    listeners = [listener(port, table(hosts, matches))]
    resources = {"listeners": listeners, "clusters": [cluster("up", behind.port)]}
    return envoy(Directory(), port, {"static_resources": resources})


def dynamic(subject, port, control_plane):
    """A subject whose mesh comes by delta ADS from this port; its listener is on `port`."""
    if subject == "amesh":
        return amesh(Directory(), port, f"127.0.0.1:{control_plane}")
    protocol = {"explicit_http_config": {"http2_protocol_options": {}}}
    options = typed("extensions.upstreams.http.v3.HttpProtocolOptions", protocol)
    server = cluster("xds", control_plane)
    server["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
    ads = {
        "api_type": "DELTA_GRPC",
        "set_node_on_first_message_only": True,
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
    }
    source = {"ads": {}, "resource_api_version": "V3"}
    config = {
        "node": {"id": "bench", "cluster": "bench"},
        "dynamic_resources": {"cds_config": source, "lds_config": source, "ads_config": ads},
        "static_resources": {"clusters": [server]},
    }
    return envoy(Directory(), port, config)
