package config

import (
	"net/netip"
	"strings"

	"github.com/danqing-queue/danqing/jobs/webhook"
)

// Callbacks configures callbacks to producers.
type Callbacks struct {
	// Secrets are the signing secrets of DANQING_CALLBACK_SECRET; several during a
	// rotation.
	Secrets []Secret
	// Allow is DANQING_CALLBACK_ALLOW: addresses to which callbacks are sent although they
	// are not public.
	Allow []netip.Prefix
}

// callbacks reads the settings of callbacks.
func (l *loader) callbacks() {
	list, name := l.lookup("DANQING_CALLBACK_SECRET")
	for secret := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		if err := webhook.ValidSecret(secret); err != nil {
			l.bad(name, "%v", err)
			continue
		}
		l.cfg.Callbacks.Secrets = append(l.cfg.Callbacks.Secrets, NewSecret(secret))
	}
	list, name = l.lookup("DANQING_CALLBACK_ALLOW")
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
