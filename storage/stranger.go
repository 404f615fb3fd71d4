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
	// maxHops is how many redirects are followed; ours. OSS sends none.
	maxHops = 3
	// strangerTime bounds a download from a host that is none of ours, whatever
	// it does; ours: a few megabytes take seconds.
	strangerTime = 15 * time.Minute
)

// ErrNotPublic means that a host's address is none of the public internet: nothing was
// sent to it. See [PublicDialer].
var ErrNotPublic = errors.New("its address is not a public one, and nothing was asked for")

var (
	errNotWeb = errors.New("not a link that can be followed: it must be http or https on the usual port, without credentials")
	errHops   = fmt.Errorf("it was redirected more than %d times", maxHops)
)

// movedError is a redirect.
type movedError struct {
	to     *url.URL
	status int
}

func (e *movedError) Error() string { return "redirected to " + e.to.Host }

// source parses rawURL and tells whether it is a source of ours. It refuses what
// must not be asked for: an image that was paid for may lie anywhere, but what
// names its place is not to be trusted.
func (s *Spool) source(rawURL string) (u *url.URL, ours bool, err error) {
	u, err = url.Parse(rawURL)
	if err != nil { // whose text would show the query
		return nil, false, &FetchError{Kind: FetchForbidden, Err: errors.New("not a URL")}
	}
	web := (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "" && u.User == nil && u.Opaque == ""
	aliyun := u.Scheme == "https" && inDomain(u.Hostname(), aliyunDomain) && (u.Port() == "" || u.Port() == "443")
	configured := slices.ContainsFunc(s.sources, func(s *url.URL) bool { return u.Scheme == s.Scheme && u.Host == s.Host })
	if web && (aliyun || configured) {
		return u, true, nil
	}
	if port := u.Port(); !web || port != "" && port != "80" && port != "443" {
		return nil, false, &FetchError{Kind: FetchForbidden, Host: u.Host, Err: errNotWeb}
	}
	return u, false, nil
}

// newStrangers makes the client for hosts that are none of ours: it has no
// credentials, and no proxy, which would connect to whatever it is told to.
func newStrangers(cfg SpoolConfig) *http.Client {
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
		// Followed by the spool itself, so that each hop is looked at.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// strangerDialTime bounds a connection's beginning; ours.
const strangerDialTime = 10 * time.Second

// PublicDialer makes the dialer for hosts that somebody else has named. It refuses,
// with [ErrNotPublic], every address that is neither public nor in allow, and looks at
// the one that is about to be connected to, after the name was resolved: what the name
// said a moment before does not count.
//
// It guards nothing behind a proxy, which connects to whatever it is told to: use it in
// a transport that has none.
func PublicDialer(allow []netip.Prefix) func(ctx context.Context, network, address string) (net.Conn, error) {
	guard := func(_ context.Context, _, address string, _ syscall.RawConn) error {
		return refusePrivate(address, allow)
	}
	return (&net.Dialer{Timeout: strangerDialTime, ControlContext: guard}).DialContext
}

func refusePrivate(address string, allow []netip.Prefix) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return ErrNotPublic
	}
	plain := at.Addr().Unmap().WithZone("") // no prefix contains a mapped address, or a zone
	if isPublic(at.Addr()) || slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(plain) }) {
		return nil
	}
	return ErrNotPublic
}

// isPublic reports whether an address is one of the public internet, by IANA's
// registries of special-purpose addresses for IPv4 and IPv6: a cloud's metadata
// (169.254.169.254, Alibaba's 100.100.100.200), an own network, and what is
// translated or tunnelled into one are not.
func isPublic(addr netip.Addr) bool {
	addr = addr.Unmap()
	in := func(prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return netip.MustParsePrefix(p).Contains(addr) })
	}
	if addr.Is4() {
		return !in(
			"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
			"192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
			"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		)
	}
	// Global unicast alone, less what is set apart in it: so neither NAT64
	// (64:ff9b::/96), nor Teredo (in 2001::/23), nor 6to4 (2002::/16).
	return in("2000::/3") && !in("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
}
