#!/usr/bin/env python3
"""What istio-agent does for the data plane: get a certificate from istiod's CA, and serve it over SDS on a Unix socket.

agent.py RUNDIR -a ADDR [--ns NS --sa SA] [--cert DIR] [--out DIR] [--sds SOCKET]
  RUNDIR  of istiod.sh: the token key and the root certificate come from there
  --cert  authenticate by DIR/{key,cert-chain}.pem (mutual TLS) and no token: renewal
  --out   write key.pem, cert-chain.pem, root-cert.pem
  --sds   then serve secrets "default", "ROOTCA", "file-root:PATH", "file-cert:CERT~KEY" (SotW, paths from RUNDIR) until killed
"""

import argparse
import os
import threading
from concurrent import futures

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2 as d
from envoy.service.secret.v3 import sds_pb2_grpc
from google.protobuf import any_pb2

import mesh_ads
import pki


def field(n, b):
    ln, out = len(b), bytes([n << 3 | 2])
    while ln > 127:
        out, ln = out + bytes([ln & 127 | 128]), ln >> 7
    return out + bytes([ln]) + b


def strings(b):
    """The values of field 1 of a message that has nothing else."""
    out, i = [], 0
    while i < len(b):
        assert b[i] == 10, b[i]
        i, ln, s = i + 1, 0, 0
        while True:
            c = b[i]
            i, ln, s = i + 1, ln | (c & 127) << s, s + 7
            if c < 128:
                break
        out.append(b[i : i + ln].decode())
        i += ln
    return out


def create_certificate(chan, token=None, seconds=86400):
    """-> (key PEM, [leaf, intermediates..., root])"""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    req = field(1, csr.public_bytes(ser.Encoding.PEM))
    v, n = b"\x18", seconds
    while n > 127:
        v, n = v + bytes([n & 127 | 128]), n >> 7
    call = chan.unary_unary(
        "/istio.v1.auth.IstioCertificateService/CreateCertificate",
        request_serializer=bytes,
        response_deserializer=bytes,
    )
    md = [("authorization", "Bearer " + token), ("clusterid", "Kubernetes")] if token else None
    pem = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
    return pem.decode(), strings(call(req + v + bytes([n]), metadata=md, timeout=10))


class Sds(sds_pb2_grpc.SecretDiscoveryServiceServicer):
    def __init__(self, key, chain):
        self.key, self.chain = key, chain

    def secret(self, name):
        s = secret_pb2.Secret(name=name)
        kind, _, path = name.partition(":")
        if kind == "file-root":
            s.validation_context.trusted_ca.inline_string = open(path).read()
        elif kind == "file-cert":
            cert, key = path.split("~")
            s.tls_certificate.certificate_chain.inline_string, s.tls_certificate.private_key.inline_string = (
                open(cert).read(),
                open(key).read(),
            )
        elif name == "ROOTCA":
            s.validation_context.trusted_ca.inline_string = self.chain[-1]
        else:
            s.tls_certificate.certificate_chain.inline_string = "".join(self.chain[:-1])
            s.tls_certificate.private_key.inline_string = self.key
        a = any_pb2.Any()
        a.Pack(s)
        return a

    def StreamSecrets(self, it, ctx):
        for r in it:
            if not r.response_nonce:
                yield d.DiscoveryResponse(
                    version_info="1",
                    nonce="1",
                    type_url=r.type_url,
                    resources=[self.secret(n) for n in r.resource_names],
                )


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("run")
    a.add_argument("-a", default="127.0.0.1:15012")
    a.add_argument("--ns", default="default")
    a.add_argument("--sa", default="app")
    a.add_argument("--cert")
    a.add_argument("--out")
    a.add_argument("--sds")
    o = a.parse_args()
    o.cert, o.out, o.sds, o.run = (p and os.path.abspath(p) for p in (o.cert, o.out, o.sds, o.run))
    c = o.cert
    chan = mesh_ads.channel(o.a, o.run + "/cacerts/root-cert.pem", c and c + "/key.pem", c and c + "/cert-chain.pem")
    key, chain = create_certificate(chan, None if c else pki.token(o.run, o.ns, o.sa))
    leaf = x509.load_pem_x509_certificate(chain[0].encode())
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    os.chdir(o.run)
    print(
        len(chain),
        "certificates;",
        san.critical,
        [g.value for g in san.value],
        leaf.not_valid_after_utc - leaf.not_valid_before_utc,
        flush=True,
    )
    if o.out:
        os.makedirs(o.out, exist_ok=True)
        for n, t in (("key", key), ("cert-chain", "".join(chain[:-1])), ("root-cert", chain[-1])):
            with open(f"{o.out}/{n}.pem", "w") as f:
                f.write(t)
    if o.sds:
        s = grpc.server(futures.ThreadPoolExecutor(32))
        sds_pb2_grpc.add_SecretDiscoveryServiceServicer_to_server(Sds(key, chain), s)
        s.add_insecure_port("unix:" + o.sds)
        s.start()
        os.chmod(o.sds, 0o666)
        threading.Event().wait()


if __name__ == "__main__":
    main()
