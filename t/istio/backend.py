#!/usr/bin/env python3
"""Backends of the mesh: backend.py in RUNDIR | backend.py out. "in" = what lives beside the sidecar, "out" = the outside.

HTTP servers answer with JSON {who, method, path, host, headers, peer}. Paths that end in
  /fail-N-KEY  answer 503 to the first N requests of that KEY      /sleep-S  answer after S seconds
  /count-KEY   answer how many requests of this server had KEY in the path
TCP servers answer each chunk with "<who>:" + chunk. TLS ones do either behind a certificate.
"""

import collections
import json
import re
import socketserver
import ssl
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

seen = collections.defaultdict(list)
# A gRPC server that nobody holds stops.
servers = []


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        who = self.server.who
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path, code = self.path.split("?")[0], 200
        out = {
            "who": who,
            "method": self.command,
            "path": self.path,
            "host": self.headers.get("host"),
            "headers": {k.lower(): v for k, v in self.headers.items()},
            "body": body.decode(),
        }
        if m := re.search(r"/count-(\w+)$", path):
            out["count"] = sum(m[1] in p for p in seen[who] if "/count-" not in p)
        seen[who].append(self.path)
        if m := re.search(r"/fail-(\d+)-(\w+)$", path):
            if sum(m[0] in p for p in seen[who]) <= int(m[1]):
                code = 503
            out["tries"] = sum(m[0] in p for p in seen[who])
        if m := re.search(r"/sleep-([\d.]+)$", path):
            time.sleep(float(m[1]))
        if isinstance(self.connection, ssl.SSLSocket):
            c = self.connection.getpeercert()
            out["peer"] = [v for _, v in (c or {}).get("subjectAltName", ())]
        b = json.dumps(out).encode() + b"\n"
        self.send_response(code)
        self.send_header("content-length", str(len(b)))
        self.send_header("x-who", who)
        self.send_header("x-internal", "secret")
        self.end_headers()
        self.wfile.write(b)

    do_GET = do_POST = do_PUT = do_HEAD = do_OPTIONS = do_DELETE = answer

    def version_string(self):
        return "backend"

    def log_message(self, *a):
        pass


class HttpServer(ThreadingHTTPServer):
    server_bind = socketserver.TCPServer.server_bind  # without http.server's reverse look-up, slow in a namespace


class Tcp(socketserver.BaseRequestHandler):
    def handle(self):
        while b := self.request.recv(65536):
            self.request.sendall(self.server.who.encode() + b":" + b)


class TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


def serve(kind, who, ip, port, ctx=None):
    s = (HttpServer if kind == "http" else TcpServer)((ip, port), Http if kind == "http" else Tcp)
    s.who = who
    s.daemon_threads = True
    if ctx:
        s.socket = ctx.wrap_socket(s.socket, server_side=True)
    threading.Thread(target=s.serve_forever, daemon=True).start()


def grpc_echo(who, addr):
    import grpc

    def say(b, c):
        c.send_initial_metadata([("x-who", who)])
        return who.encode() + b":" + b

    h = grpc.method_handlers_generic_handler("test.Echo", {"Say": grpc.unary_unary_rpc_method_handler(say)})
    s = grpc.server(futures.ThreadPoolExecutor(8))
    s.add_generic_rpc_handlers([h])
    s.add_insecure_port(addr)
    s.start()
    return s


def main():
    if sys.argv[1] == "out":
        for p in (80, 443, 5432, 9999):
            serve("http" if p == 80 else "tcp", f"out-{p}", "0.0.0.0", p)
    else:
        run = sys.argv[2]
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(run + "/tls.crt", run + "/tls.key")
        tls.set_alpn_protocols(["http/1.1"])
        mtls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        mtls.load_cert_chain(run + "/vault/cert-chain.pem", run + "/vault/key.pem")
        mtls.load_verify_locations(run + "/vault/root-cert.pem")
        mtls.verify_mode = ssl.CERT_REQUIRED
        for who, ip in (("v1", 11), ("v2", 12), ("v3", 13), ("pay1", 18), ("pay2", 19)):
            serve("http", who, f"127.0.0.{ip}", 18080)
        for who, ip in (("db1", 15), ("db2", 16), ("novip", 12)):
            serve("tcp", who, f"127.0.0.{ip}", 15432)
        serve("http", "auto", "127.0.0.15", 15433)
        servers.append(grpc_echo("echo", "127.0.0.14:19000"))
        serve("http", "legacy", "127.0.0.17", 18444, tls)
        serve("http", "api", "127.0.0.1", 18444, tls)
        serve("http", "vault", "127.0.0.21", 18443, mtls)
        serve("http", "app", "0.0.0.0", 8080)
        serve("http", "app-strict", "0.0.0.0", 8081)
        serve("tcp", "app-tcp", "0.0.0.0", 17000)
        serve("http", "app-any", "0.0.0.0", 17100)
    print("ready", flush=True)
    threading.Event().wait()


main()
