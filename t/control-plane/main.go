// A control plane for tests: the real go-control-plane, serving a mesh that it makes up, changed by commands.
//
//	control-plane -clusters 10000 -endpoints 10 -listen 127.0.0.1:18000 -control 127.0.0.1:18001
//	curl -d 'endpoint c42 127.0.0.1:9002' 127.0.0.1:18001
//
// ADS, delta and state of the world, on a TCP port or "unix:/path", plaintext or TLS. One linear cache a type: a change
// of one resource sends that one (state of the world: all of it for clusters and listeners, as the protocol says).
//
// The mesh: listener "mesh" at -listener takes its routes from RDS "mesh". Virtual host vI (domain vI.mesh.test) has
// -routes routes: /r0/ ... /rN-2/ and, last, /; all of them go to cluster cI, or c(I mod -clusters). Cluster cI is EDS
// with -endpoints endpoints: those of -upstreams in turn, or addresses in 127.0.0.0/8 where nobody listens.
//
// Commands come as lines on standard input or as the body of a POST to -control; the answer is one JSON object (on
// standard output, or the response; 400 if it has "error"). "pushed" in it is when the change was handed to
// go-control-plane, Unix time in nanoseconds; "count" has when the library then sent it ("last_response").
//
//	weight NAME A B        the last route of virtual host NAME goes to its cluster and to the next one as A to B
//	endpoint NAME [ADDR]   the first endpoint of cluster NAME becomes ADDR (default: an address never used before)
//	assign NAME ADDR...    the endpoints of cluster NAME become these
//	storm N                N times "endpoint" as fast as possible, over all clusters in turn
//	rotate                 every cluster gets the next addresses of -upstreams
//	replace                every resource gets new content
//	add NAME               a cluster, its endpoints and a virtual host (domain NAME.mesh.test)
//	remove NAME            takes them away
//	bad KIND NAME          resource NAME becomes one that makes no sense; KIND: cluster, endpoints, listener, route
//	good KIND NAME         takes that back
//	drop                   ends every stream with UNAVAILABLE
//	count                  what was sent and heard, by type (Tally in streams.go), and the streams
//	quit                   ends the program; so does SIGTERM
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

func listen(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		// A socket that a killed predecessor left would be in the way.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		return net.Listen("unix", path)
	}
	return net.Listen("tcp", address)
}

// transport is TLS if a certificate is given, and asks for one of clientCA's if that is given too.
func transport(cert, key, clientCA string) (grpc.ServerOption, error) {
	if cert == "" {
		return grpc.EmptyServerOption{}, nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if clientCA != "" {
		pem, err := os.ReadFile(clientCA)
		if err != nil {
			return nil, err
		}
		config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !config.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("-tls-client-ca %s: no certificate in it", clientCA)
		}
	}
	return grpc.Creds(credentials.NewTLS(config)), nil
}

func run() error {
	var shape Shape
	flag.IntVar(&shape.Clusters, "clusters", 10, "clusters")
	flag.IntVar(&shape.Endpoints, "endpoints", 2, "endpoints of each cluster")
	flag.IntVar(&shape.VirtualHosts, "vhosts", 10, "virtual hosts")
	flag.IntVar(&shape.Routes, "routes", 1, "routes of each virtual host")
	flag.StringVar(&shape.Listener, "listener", "127.0.0.1:10000", "address of the listener")
	upstreams := flag.String("upstreams", "", "addresses of endpoints, separated by commas")
	address := flag.String("listen", "127.0.0.1:18000", "where ADS is served: HOST:PORT or unix:/PATH")
	control := flag.String("control", "", "where commands are taken by HTTP: HOST:PORT; empty: on standard input only")
	cert := flag.String("tls-cert", "", "certificate chain, PEM; empty: plaintext")
	key := flag.String("tls-key", "", "its key, PEM")
	clientCA := flag.String("tls-client-ca", "", "clients must show a certificate of these, PEM")
	age := flag.Duration("max-age", 0, "age at which a connection gets GOAWAY, then 1 s of grace; 0: never")
	flag.Parse()
	if *upstreams != "" {
		shape.Upstreams = strings.Split(*upstreams, ",")
	}

	mesh, err := NewMesh(shape)
	if err != nil {
		return err
	}
	security, err := transport(*cert, *key, *clientCA)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	streams := NewStreams()
	options := []grpc.ServerOption{security, grpc.StreamInterceptor(streams.Intercept), grpc.MaxConcurrentStreams(1000)}
	if *age > 0 {
		options = append(options, grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: *age, MaxConnectionAgeGrace: time.Second}))
	}
	g := grpc.NewServer(options...)
	discovery.RegisterAggregatedDiscoveryServiceServer(g, server.NewServer(ctx, mesh.Cache(), streams.Callbacks()))
	ads, err := listen(*address)
	if err != nil {
		return err
	}
	commands := &Commands{mesh: mesh, streams: streams, quit: stop}
	if *control != "" {
		l, err := net.Listen("tcp", *control)
		if err != nil {
			return err
		}
		go func() { fail(http.Serve(l, commands)) }()
	}
	go commands.Lines(os.Stdin, os.Stdout)
	go func() { fail(g.Serve(ads)) }()
	fmt.Println(`{"ready":true}`)
	<-ctx.Done()
	g.Stop()
	return nil
}

// Lines answers one command a line until the input ends; the program goes on without it.
func (c *Commands) Lines(in io.Reader, out io.Writer) {
	answers := json.NewEncoder(out)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if line := strings.TrimSpace(lines.Text()); line != "" {
			if err := answers.Encode(c.Do(line)); err != nil {
				return
			}
		}
	}
}

// ServeHTTP takes the command in the body of a POST.
func (c *Commands) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	line, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer := c.Do(strings.TrimSpace(string(line)))
	w.Header().Set("content-type", "application/json")
	if _, bad := answer["error"]; bad {
		w.WriteHeader(http.StatusBadRequest)
	}
	// Whoever asked may have gone away: nothing to do about that.
	_ = json.NewEncoder(w).Encode(answer)
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "control-plane:", err)
		os.Exit(1)
	}
}

func main() { fail(run()) }
