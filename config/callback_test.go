package config

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCallbacks(t *testing.T) {
	t.Parallel()
	const one, two = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
	cfg, err := load(map[string]string{"DANQING_CALLBACK_SECRET": one + ", " + two, "DANQING_CALLBACK_ALLOW": "10.1.2.3,192.168.1.0/16 ::1"})
	require.NoError(t, err)
	assert.Equal(t, Callbacks{
		Secrets: []Secret{NewSecret(one), NewSecret(two)},
		Allow:   []netip.Prefix{netip.MustParsePrefix("10.1.2.3/32"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("::1/128")},
	}, cfg.Callbacks)
	_, err = load(map[string]string{"DANQING_CALLBACK_SECRET": "hunter2", "DANQING_CALLBACK_ALLOW": "shop.example"})
	require.ErrorContains(t, err, "DANQING_CALLBACK_SECRET must be whsec_")
	require.ErrorContains(t, err, `DANQING_CALLBACK_ALLOW "shop.example": must be addresses or networks`)
	assert.NotContains(t, err.Error(), "hunter2")
}
