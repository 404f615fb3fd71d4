package storage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"syscall"
	"time"
)

const (
	// maxRedirects is how many redirects are followed. OSS sends none; the value is
	// our choice.
	maxRedirects = 3
	// untrustedTimeout limits a whole download from an untrusted host. The value is
	// our choice: a few megabytes take seconds.
	untrustedTimeout = 15 * time.Minute
)

// ErrNotPublic means that a host has no address on the public internet, or only one of
// this machine. No connection was opened. See [PublicDialer].
var ErrNotPublic = errors.New("it has no public address, so no request was sent")

var (
	errUnsupportedURL   = errors.New("unsupported URL: it must be http or https on port 80 or 443, without credentials")
	errTooManyRedirects = fmt.Errorf("it was redirected more than %d times", maxRedirects)
)

// redirectError reports a redirect to the caller, which decides whether to follow it.
type redirectError struct {
	to     *url.URL
	status int
}

func (e *redirectError) Error() string { return "redirected to " + e.to.Host }

// parseSource parses rawURL and reports whether its host is trusted. It refuses URLs
// that must not be requested: a paid image may be on any host, but a URL is untrusted
// input.
func (s *Spool) parseSource(rawURL string) (u *url.URL, trusted bool, err error) {
	u, err = url.Parse(rawURL)
	if err != nil { // not wrapped: its text contains the query
		return nil, false, &FetchError{Kind: FetchForbidden, Err: errors.New("not a URL")}
	}
	web := (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "" && u.User == nil && u.Opaque == ""
	aliyun := u.Scheme == "https" && inDomain(u.Hostname(), aliyunDomain) && (u.Port() == "" || u.Port() == "443")
	configured := slices.ContainsFunc(s.extraSources, func(s *url.URL) bool { return u.Scheme == s.Scheme && u.Host == s.Host })
	if web && (aliyun || configured) {
		return u, true, nil
	}
	if port := u.Port(); !web || port != "" && port != "80" && port != "443" {
		return nil, false, &FetchError{Kind: FetchForbidden, Host: u.Host, Err: errUnsupportedURL}
	}
	return u, false, nil
}

// newUntrustedClient returns the client for untrusted hosts. It uses no proxy, because
// a proxy would connect to private addresses too.
func newUntrustedClient(cfg SpoolConfig) *http.Client {
	dial := cfg.DialPublic
	if dial == nil {
		dial = PublicDialer(nil)
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext:           dial,
			DisableCompression:    true,
			DisableKeepAlives:     true,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: cfg.HeaderTimeout,
		},
		// The spool follows redirects itself, and checks each one.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// publicDialTimeout limits the setup of a connection. The value is our choice.
const publicDialTimeout = 10 * time.Second

// PublicDialer returns a dial function for hosts in untrusted URLs, against server-side
// request forgery. It refuses, with [ErrNotPublic], every address that is not public, or is
// this machine's own, unless it is in allow. It checks the address of the connection itself, after name resolution,
// so a DNS record that changes in between does not help an attacker.
//
// It gives no protection in a transport with a proxy, because the proxy opens the
// connection.
func PublicDialer(allow []netip.Prefix) func(ctx context.Context, network, address string) (net.Conn, error) {
	guard := func(_ context.Context, _, address string, _ syscall.RawConn) error {
		return refusePrivate(address, allow, ownAddresses())
	}
	return (&net.Dialer{Timeout: publicDialTimeout, ControlContext: guard}).DialContext
}

// ownAddresses returns the addresses of this machine's interfaces, as far as they can be
// read. Public ones lead to services that a firewall keeps from others.
func ownAddresses() []netip.Addr {
	var own []netip.Addr
	addresses, _ := net.InterfaceAddrs() // without them only public ones are missed
	for _, address := range addresses {
		if network, ok := address.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(network.IP); ok {
				own = append(own, addr.Unmap())
			}
		}
	}
	return own
}

// MayDial reports whether [PublicDialer] with these exceptions connects to an address.
func MayDial(address netip.Addr, allow []netip.Prefix) bool {
	return refusePrivate(netip.AddrPortFrom(address, 0).String(), allow, ownAddresses()) == nil
}

func refusePrivate(address string, allow []netip.Prefix, own []netip.Addr) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return ErrNotPublic
	}
	plain := at.Addr().Unmap().WithZone("") // no prefix contains a mapped address, or a zone
	if isPublic(at.Addr()) && !slices.Contains(own, plain) || slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(plain) }) {
		return nil
	}
	return ErrNotPublic
}

// isPublic reports whether an address is on the public internet, by IANA's
// registries of special-purpose addresses for IPv4 and IPv6. Cloud metadata services
// (169.254.169.254, Alibaba's 100.100.100.200, AWS's fd00:ec2::254, Azure's
// 168.63.129.16), private networks, and addresses that are translated or tunneled into
// those are not.
func isPublic(addr netip.Addr) bool {
	addr = addr.Unmap()
	in := func(prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return netip.MustParsePrefix(p).Contains(addr) })
	}
	if addr.Is4() {
		return !in(
			"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
			"192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
			"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		)
	}
	// Only global unicast without its special-purpose ranges, which excludes NAT64
	// (64:ff9b::/96), Teredo (in 2001::/23) and 6to4 (2002::/16).
	return in("2000::/3") && !in("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
}
