package config

import (
	"net/netip"
	"strings"

	"github.com/danqing-queue/danqing/jobs/webhook"
)

// Callbacks is how producers are called back.
type Callbacks struct {
	// Secrets are those of DANQING_CALLBACK_SECRET, by which callbacks are signed; several
	// while they are rotated.
	Secrets []Secret
	// Allow is DANQING_CALLBACK_ALLOW: addresses that may be called although they are not
	// public.
	Allow []netip.Prefix
}

// callbacks reads how producers are called back.
func (l *loader) callbacks() {
	list, name := l.first("DANQING_CALLBACK_SECRET")
	for secret := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		if err := webhook.ValidSecret(secret); err != nil {
			l.bad(name, "%v", err)
			continue
		}
		l.cfg.Callbacks.Secrets = append(l.cfg.Callbacks.Secrets, NewSecret(secret))
	}
	list, name = l.first("DANQING_CALLBACK_ALLOW")
	for text := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		prefix, err := netip.ParsePrefix(text)
		if address, addressErr := netip.ParseAddr(text); addressErr == nil {
			prefix, err = netip.PrefixFrom(address, address.BitLen()), nil
		}
		if err != nil {
			l.bad(name, "%q: must be addresses or networks, as in 10.1.2.3,192.168.0.0/16", text)
			continue
		}
		l.cfg.Callbacks.Allow = append(l.cfg.Callbacks.Allow, prefix.Masked())
	}
}
