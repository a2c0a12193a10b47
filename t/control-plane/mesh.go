package main

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The one listener and the one route table.
const meshName = "mesh"

// Shape is how large a mesh is and where its addresses are.
type Shape struct {
	Clusters, Endpoints, VirtualHosts, Routes int
	Listener                                  string
	Upstreams                                 []string
}

// Mesh is the resources, each type in a linear cache of go-control-plane's.
type Mesh struct {
	mu     sync.Mutex
	shape  Shape
	caches map[string]*cache.LinearCache
	// What the caches hold, by type and name.
	held  map[string]map[string]types.Resource
	hosts []*route.VirtualHost
	// What "bad" replaced, by type and name.
	saved map[[2]string]types.Resource
	// Number of the last made-up address.
	made int
	// Grows with every "replace".
	round int
	// Grows with every "rotate".
	turn int
}

// NewMesh makes a mesh of a shape.
func NewMesh(shape Shape) (*Mesh, error) {
	if shape.Clusters < 1 || shape.Endpoints < 1 || shape.VirtualHosts < 1 || shape.Routes < 1 {
		return nil, fmt.Errorf("-clusters, -endpoints, -vhosts and -routes are at least 1")
	}
	m := &Mesh{shape: shape, caches: map[string]*cache.LinearCache{}, saved: map[[2]string]types.Resource{}}
	clusters, assignments := map[string]types.Resource{}, map[string]types.Resource{}
	for i := range shape.Clusters {
		name := "c" + strconv.Itoa(i)
		clusters[name] = m.cluster(name)
		assignment, err := m.assignment(name, m.addresses(i))
		if err != nil {
			return nil, err
		}
		assignments[name] = assignment
	}
	for i := range shape.VirtualHosts {
		m.hosts = append(m.hosts, m.virtualHost("v"+strconv.Itoa(i), "c"+strconv.Itoa(i%shape.Clusters)))
	}
	front, err := m.listener()
	if err != nil {
		return nil, err
	}
	m.held = map[string]map[string]types.Resource{
		resource.ClusterType:  clusters,
		resource.EndpointType: assignments,
		resource.ListenerType: {meshName: front},
		resource.RouteType:    {meshName: m.table()},
	}
	// Types of which there is nothing are served too: a client that asks for one must not lose its stream.
	for _, kind := range []string{
		resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType, resource.VirtualHostType,
		resource.ScopedRouteType, resource.SecretType, resource.ExtensionConfigType, resource.RuntimeType,
	} {
		m.caches[kind] = cache.NewLinearCache(kind, cache.WithInitialResources(m.held[kind]))
	}
	return m, nil
}

// Cache is the caches as one.
func (m *Mesh) Cache() cache.Cache {
	all := map[string]cache.Cache{}
	for kind, one := range m.caches {
		all[kind] = one
	}
	return &cache.MuxCache{
		Classify:      func(r *cache.Request) string { return r.GetTypeUrl() },
		ClassifyDelta: func(r *cache.DeltaRequest) string { return r.GetTypeUrl() },
		Caches:        all,
	}
}

// set puts a resource into its cache, which sends it.
func (m *Mesh) set(kind, name string, r types.Resource) error {
	m.held[kind][name] = r
	return m.caches[kind].UpdateResource(name, r)
}

// unset takes one out.
func (m *Mesh) unset(kind, name string) error {
	delete(m.held[kind], name)
	return m.caches[kind].DeleteResource(name)
}

// addresses are those of the endpoints of cluster i.
func (m *Mesh) addresses(i int) []string {
	var out []string
	for j := range m.shape.Endpoints {
		if n := len(m.shape.Upstreams); n > 0 {
			out = append(out, m.shape.Upstreams[(i+j)%n])
		} else {
			out = append(out, m.address())
		}
	}
	return out
}

// address makes one up that was not used before.
func (m *Mesh) address() string {
	m.made++
	return fmt.Sprintf("127.%d.%d.%d:8080", 1+m.made>>16&127, m.made>>8&255, m.made&255)
}

func ads() *core.ConfigSource {
	return &core.ConfigSource{
		ResourceApiVersion:    core.ApiVersion_V3,
		ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
	}
}

func (m *Mesh) cluster(name string) *cluster.Cluster {
	return &cluster.Cluster{
		Name: name,
		// A difference that no request notices, so that "replace" changes every cluster.
		ConnectTimeout:       durationpb.New(time.Second + time.Duration(m.round)*time.Millisecond),
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: ads()},
	}
}

func socket(address string) (*core.Address, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address:       host,
		PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(n)},
	}}}, nil
}

func (m *Mesh) assignment(name string, addresses []string) (*endpoint.ClusterLoadAssignment, error) {
	group := &endpoint.LocalityLbEndpoints{Locality: &core.Locality{Region: "r", Zone: "z"}}
	for _, a := range addresses {
		where, err := socket(a)
		if err != nil {
			return nil, err
		}
		group.LbEndpoints = append(group.LbEndpoints, &endpoint.LbEndpoint{
			HostIdentifier:      &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: where}},
			LoadBalancingWeight: wrapperspb.UInt32(uint32(1 + m.round)),
		})
	}
	return &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{group}}, nil
}

func to(prefix string, action *route.RouteAction) *route.Route {
	return &route.Route{
		Match:  &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: prefix}},
		Action: &route.Route_Route{Route: action},
	}
}

func (m *Mesh) virtualHost(name, target string) *route.VirtualHost {
	host := &route.VirtualHost{Name: name, Domains: []string{name + ".mesh.test"}}
	for i := range m.shape.Routes - 1 {
		host.Routes = append(host.Routes, to(fmt.Sprintf("/r%d/", i), single(target)))
	}
	host.Routes = append(host.Routes, to("/", single(target)))
	return host
}

func single(target string) *route.RouteAction {
	return &route.RouteAction{ClusterSpecifier: &route.RouteAction_Cluster{Cluster: target}}
}

// table is a copy: what a cache holds must not change any more.
func (m *Mesh) table() *route.RouteConfiguration {
	table := &route.RouteConfiguration{Name: meshName, ValidateClusters: wrapperspb.Bool(false)}
	for _, host := range m.hosts {
		table.VirtualHosts = append(table.VirtualHosts, proto.CloneOf(host))
	}
	return table
}

func (m *Mesh) listener() (*listener.Listener, error) {
	filter, err := anypb.New(&router.Router{})
	if err != nil {
		return nil, err
	}
	manager, err := anypb.New(&hcm.HttpConnectionManager{
		StatPrefix: fmt.Sprintf("mesh%d", m.round),
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{
			Rds: &hcm.Rds{ConfigSource: ads(), RouteConfigName: meshName},
		},
		HttpFilters: []*hcm.HttpFilter{{
			Name:       "envoy.filters.http.router",
			ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: filter},
		}},
	})
	if err != nil {
		return nil, err
	}
	where, err := socket(m.shape.Listener)
	if err != nil {
		return nil, err
	}
	return &listener.Listener{Name: meshName, Address: where, FilterChains: []*listener.FilterChain{{
		Filters: []*listener.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listener.Filter_TypedConfig{TypedConfig: manager},
		}},
	}}}, nil
}

// Replace gives every resource new content; what is bad becomes good.
func (m *Mesh) Replace() error {
	m.round++
	clusters, assignments := map[string]types.Resource{}, map[string]types.Resource{}
	for name, one := range m.held[resource.EndpointType] {
		if saved, bad := m.saved[[2]string{"endpoints", name}]; bad {
			one = saved
		}
		var addresses []string
		for _, e := range one.(*endpoint.ClusterLoadAssignment).Endpoints[0].LbEndpoints {
			addresses = append(addresses, text(e))
		}
		next, err := m.assignment(name, addresses)
		if err != nil {
			return err
		}
		clusters[name], assignments[name] = m.cluster(name), next
	}
	for _, host := range m.hosts {
		host.RequestHeadersToRemove = []string{fmt.Sprintf("x-round-%d", m.round)}
	}
	front, err := m.listener()
	if err != nil {
		return err
	}
	m.held = map[string]map[string]types.Resource{
		resource.ClusterType:  clusters,
		resource.EndpointType: assignments,
		resource.ListenerType: {meshName: front},
		resource.RouteType:    {meshName: m.table()},
	}
	for _, kind := range []string{resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType} {
		m.caches[kind].SetResources(m.held[kind])
	}
	clear(m.saved)
	return nil
}

func text(e *endpoint.LbEndpoint) string {
	a := e.GetEndpoint().GetAddress().GetSocketAddress()
	return net.JoinHostPort(a.GetAddress(), strconv.Itoa(int(a.GetPortValue())))
}

// Assign gives a cluster these endpoints.
func (m *Mesh) Assign(name string, addresses []string) error {
	if _, there := m.held[resource.EndpointType][name]; !there {
		return fmt.Errorf("no cluster %q", name)
	}
	next, err := m.assignment(name, addresses)
	if err != nil {
		return err
	}
	return m.set(resource.EndpointType, name, next)
}

// Endpoint gives a cluster another first endpoint.
func (m *Mesh) Endpoint(name, address string) error {
	one, there := m.held[resource.EndpointType][name]
	if !there {
		return fmt.Errorf("no cluster %q", name)
	}
	if address == "" {
		address = m.address()
	}
	where, err := socket(address)
	if err != nil {
		return err
	}
	next := proto.CloneOf(one.(*endpoint.ClusterLoadAssignment))
	next.Endpoints[0].LbEndpoints[0].GetEndpoint().Address = where
	return m.set(resource.EndpointType, name, next)
}

// Storm changes endpoints n times, cluster after cluster.
func (m *Mesh) Storm(n int) error {
	names := slices.Sorted(maps.Keys(m.held[resource.EndpointType]))
	for i := range n {
		if err := m.Endpoint(names[i%len(names)], ""); err != nil {
			return err
		}
	}
	return nil
}

// Rotate gives the endpoints of every cluster other addresses at once, the next ones of those that are known.
func (m *Mesh) Rotate() error {
	m.turn++
	assignments := map[string]types.Resource{}
	for i := range m.shape.Clusters {
		name := "c" + strconv.Itoa(i)
		next, err := m.assignment(name, m.addresses(i+m.turn))
		if err != nil {
			return err
		}
		m.held[resource.EndpointType][name], assignments[name] = next, next
	}
	return m.caches[resource.EndpointType].UpdateResources(assignments, nil)
}

// Weight splits the last route of a virtual host between its cluster and the next one.
func (m *Mesh) Weight(name string, a, b uint32) error {
	i := slices.IndexFunc(m.hosts, func(h *route.VirtualHost) bool { return h.Name == name })
	if i < 0 {
		return fmt.Errorf("no virtual host %q", name)
	}
	arm := func(i int, weight uint32) *route.WeightedCluster_ClusterWeight {
		return &route.WeightedCluster_ClusterWeight{
			Name: "c" + strconv.Itoa(i%m.shape.Clusters), Weight: wrapperspb.UInt32(weight),
		}
	}
	m.hosts[i].Routes[m.shape.Routes-1] = to("/", &route.RouteAction{
		ClusterSpecifier: &route.RouteAction_WeightedClusters{WeightedClusters: &route.WeightedCluster{
			Clusters: []*route.WeightedCluster_ClusterWeight{arm(i, a), arm(i+1, b)},
		}},
	})
	return m.set(resource.RouteType, meshName, m.table())
}

// Add makes a cluster and a virtual host of a name, in the order that loses no request.
func (m *Mesh) Add(name string) error {
	if _, there := m.held[resource.ClusterType][name]; there {
		return fmt.Errorf("cluster %q is there already", name)
	}
	assignment, err := m.assignment(name, m.addresses(len(m.hosts)))
	if err != nil {
		return err
	}
	m.hosts = append(m.hosts, m.virtualHost(name, name))
	if err := m.set(resource.ClusterType, name, m.cluster(name)); err != nil {
		return err
	}
	if err := m.set(resource.EndpointType, name, assignment); err != nil {
		return err
	}
	return m.set(resource.RouteType, meshName, m.table())
}

// Remove takes away what Add made.
func (m *Mesh) Remove(name string) error {
	if _, there := m.held[resource.ClusterType][name]; !there {
		return fmt.Errorf("no cluster %q", name)
	}
	m.hosts = slices.DeleteFunc(m.hosts, func(h *route.VirtualHost) bool { return h.Name == name })
	if err := m.set(resource.RouteType, meshName, m.table()); err != nil {
		return err
	}
	if err := m.unset(resource.ClusterType, name); err != nil {
		return err
	}
	return m.unset(resource.EndpointType, name)
}

var kinds = map[string]string{
	"cluster":   resource.ClusterType,
	"endpoints": resource.EndpointType,
	"listener":  resource.ListenerType,
	"route":     resource.RouteType,
}

// Bad puts nonsense in the place of a resource: what Envoy rejects, too.
func (m *Mesh) Bad(kind, name string) error {
	url, there := kinds[kind]
	if !there {
		return fmt.Errorf("no kind %q: cluster, endpoints, listener or route", kind)
	}
	now, there := m.held[url][name]
	if !there {
		return fmt.Errorf("no %s %q", kind, name)
	}
	key := [2]string{kind, name}
	if _, already := m.saved[key]; already {
		return fmt.Errorf("%s %q is bad already", kind, name)
	}
	next := proto.Clone(now)
	switch r := next.(type) {
	case *cluster.Cluster: // endpoints of its own that are no addresses
		where := &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
			Address: "no address", PortSpecifier: &core.SocketAddress_PortValue{PortValue: 80},
		}}}
		r.ClusterDiscoveryType, r.EdsClusterConfig = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}, nil
		r.LoadAssignment = &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{{
			LbEndpoints: []*endpoint.LbEndpoint{{
				HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: where}},
			}},
		}}}
	case *endpoint.ClusterLoadAssignment: // a port that there is not
		r.Endpoints[0].LbEndpoints[0].GetEndpoint().GetAddress().GetSocketAddress().PortSpecifier =
			&core.SocketAddress_PortValue{PortValue: 70000}
	case *listener.Listener: // two filter chains for the same connections
		r.FilterChains = append(r.FilterChains, r.FilterChains[0])
	case *route.RouteConfiguration: // a regex that does not end
		r.VirtualHosts[0].Routes[0].Match.PathSpecifier = &route.RouteMatch_SafeRegex{
			SafeRegex: &matcher.RegexMatcher{Regex: "/(unclosed"},
		}
	}
	m.saved[key] = now
	return m.set(url, name, next)
}

// Good takes Bad back.
func (m *Mesh) Good(kind, name string) error {
	key := [2]string{kind, name}
	saved, there := m.saved[key]
	if !there {
		return fmt.Errorf("no %s %q that is bad", kind, name)
	}
	delete(m.saved, key)
	if kind == "route" {
		saved = m.table() // with what other commands changed meanwhile
	}
	return m.set(kinds[kind], name, saved)
}
