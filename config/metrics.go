package config

import "net"

// Metrics configures the listener for metrics and health.
type Metrics struct {
	// Listen is DANQING_METRICS_LISTEN, host:port; "" means none.
	Listen string
	// Token is DANQING_METRICS_TOKEN, what a reader of the metrics sends as a bearer token. It is
	// set if Listen is not a loopback address.
	Token Secret
}

// metrics reads the settings of the listener for metrics and health.
func (l *loader) metrics() {
	m := &l.cfg.Metrics
	token, name := l.lookup("DANQING_METRICS_TOKEN")
	if token != "" && len(token) < minTokenBytes {
		l.bad(name, "must have %d characters or more, such as openssl rand -hex 24 prints", minTokenBytes)
	}
	m.Token = NewSecret(token)
	if m.Listen, name = l.lookup("DANQING_METRICS_LISTEN"); m.Listen == "" {
		return
	}
	host, _, err := net.SplitHostPort(m.Listen)
	ip := net.ParseIP(host)
	switch {
	case err != nil:
		l.bad(name, "%q: must be host:port, as in 127.0.0.1:9464", m.Listen)
	case token == "" && host != "localhost" && (ip == nil || !ip.IsLoopback()):
		l.bad(name, "%q: is not a loopback address: set DANQING_METRICS_TOKEN, which readers must send then, or use 127.0.0.1:9464", m.Listen)
	}
}
