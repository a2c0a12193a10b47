package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
)

// Tally is what was sent and heard of one type.
type Tally struct {
	Requests  int `json:"requests"`
	Responses int `json:"responses"`
	// Resources in all responses.
	Resources int `json:"resources"`
	// Names in removed_resources of all responses.
	Removed int `json:"removed"`
	Acks    int `json:"acks"`
	Nacks   int `json:"nacks"`
	// Versions that clients said they had when they came (back).
	InitialVersions int `json:"initial_versions"`
	// When the last response was handed to the connection, Unix time in nanoseconds.
	LastResponse int64 `json:"last_response"`
	// error_detail of each NACK.
	Errors []string `json:"errors"`
}

// Streams counts, and can end, all streams.
type Streams struct {
	mu     sync.Mutex
	opened int
	open   map[int]chan struct{}
	tally  map[string]*Tally
	nodes  map[string]bool
}

// NewStreams has none yet.
func NewStreams() *Streams {
	return &Streams{open: map[int]chan struct{}{}, tally: map[string]*Tally{}, nodes: map[string]bool{}}
}

// Intercept runs a stream's handler so that Drop can end the stream under it.
func (s *Streams) Intercept(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	s.mu.Lock()
	s.opened++
	id, dropped := s.opened, make(chan struct{})
	s.open[id] = dropped
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.open, id)
		s.mu.Unlock()
	}()
	done := make(chan error, 1)
	go func() { done <- handler(srv, stream) }()
	select {
	case err := <-done:
		return err
	case <-dropped:
		// The return cancels the stream's context, which ends the handler.
		return grpcstatus.Error(codes.Unavailable, "dropped by command")
	}
}

// Drop ends every stream and says how many there were.
func (s *Streams) Drop() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.open)
	for id, dropped := range s.open {
		close(dropped)
		delete(s.open, id)
	}
	return n
}

// Count is everything so far, by the last word of the type's name (Cluster, ClusterLoadAssignment, ...).
func (s *Streams) Count() Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	types := map[string]Tally{}
	for name, tally := range s.tally {
		one := *tally
		one.Errors = slices.Clone(one.Errors)
		types[name] = one
	}
	return Answer{
		"streams": len(s.open), "streams_opened": s.opened, "nodes": slices.Sorted(maps.Keys(s.nodes)), "types": types,
	}
}

// Callbacks are what go-control-plane calls.
func (s *Streams) Callbacks() server.Callbacks {
	return server.CallbackFuncs{
		StreamRequestFunc: func(_ int64, r *discovery.DiscoveryRequest) error {
			s.request(r.GetTypeUrl(), r.GetResponseNonce(), r.GetErrorDetail(), r.GetNode(), 0)
			return nil
		},
		StreamDeltaRequestFunc: func(_ int64, r *discovery.DeltaDiscoveryRequest) error {
			s.request(r.GetTypeUrl(), r.GetResponseNonce(), r.GetErrorDetail(), r.GetNode(), len(r.GetInitialResourceVersions()))
			return nil
		},
		StreamResponseFunc: func(_ context.Context, _ int64, _ *discovery.DiscoveryRequest, r *discovery.DiscoveryResponse) {
			s.response(r.GetTypeUrl(), len(r.GetResources()), 0)
		},
		StreamDeltaResponseFunc: func(_ int64, _ *discovery.DeltaDiscoveryRequest, r *discovery.DeltaDiscoveryResponse) {
			s.response(r.GetTypeUrl(), len(r.GetResources()), len(r.GetRemovedResources()))
		},
	}
}

// of is the tally of a type; s.mu is held.
func (s *Streams) of(url string) *Tally {
	name := url[strings.LastIndexByte(url, '.')+1:]
	if s.tally[name] == nil {
		s.tally[name] = &Tally{Errors: []string{}}
	}
	return s.tally[name]
}

func (s *Streams) request(url, nonce string, detail *status.Status, node *core.Node, versions int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.of(url)
	t.Requests++
	t.InitialVersions += versions
	switch {
	case detail != nil:
		t.Nacks++
		t.Errors = append(t.Errors, detail.GetMessage())
	case nonce != "":
		t.Acks++
	}
	if node.GetId() != "" {
		s.nodes[node.GetId()] = true
	}
}

func (s *Streams) response(url string, resources, removed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.of(url)
	t.Responses++
	t.LastResponse = time.Now().UnixNano()
	t.Resources += resources
	t.Removed += removed
}
