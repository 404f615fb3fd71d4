package storage

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestIsPublic(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"8.8.8.8": true, "47.95.0.1": true, "2400:3200::1": true, "2606:4700:4700::1111": true, "::ffff:8.8.8.8": true,

		"127.0.0.1": false, "127.255.255.255": false, "0.0.0.0": false, "0.1.2.3": false, "10.0.0.1": false,
		"172.16.0.1": false, "172.31.255.255": false, "192.168.1.1": false, "169.254.169.254": false,
		"168.63.129.16": false, "100.64.0.1": false, "100.100.100.200": false, "192.0.0.170": false, "192.0.2.1": false, "198.18.0.1": false,
		"198.51.100.1": false, "203.0.113.1": false, "224.0.0.1": false, "239.255.255.255": false, "240.0.0.1": false,
		"255.255.255.255": false,

		"::": false, "::1": false, "::ffff:127.0.0.1": false, "::ffff:100.100.100.200": false, "::127.0.0.1": false,
		"64:ff9b::7f00:1": false, "64:ff9b:1::1": false, "100::1": false, "fe80::1": false, "fe80::1%eth0": false,
		"fc00::1": false, "fd00:ec2::254": false, "ff02::1": false, "2001::1": false, "2001:db8::1": false,
		"2002:7f00:1::": false, "3fff::1": false, "2400:3200::1%eth0": false,
	} {
		assert.Equal(t, want, isPublic(netip.MustParseAddr(address)), address)
	}
}

// A public address of this machine's own is refused, unless it is allowed.
func TestOwnPublicAddressesAreRefused(t *testing.T) {
	t.Parallel()
	own := []netip.Addr{netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("2400:3200::1")}
	for _, address := range []string{"8.8.8.8:80", "[::ffff:8.8.8.8]:80", "[2400:3200::1]:80"} {
		require.NoError(t, refusePrivate(address, nil, nil), address)
		require.ErrorIs(t, refusePrivate(address, nil, own), ErrNotPublic, address)
	}
	require.NoError(t, refusePrivate("8.8.8.8:80", []netip.Prefix{netip.MustParsePrefix("8.8.8.0/24")}, own))
	require.NotEmpty(t, ownAddresses())
}
