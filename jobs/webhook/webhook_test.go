package webhook_test

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/webhook"
)

const (
	secret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
	other  = "whsec_YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4"
)

// The specification's own library accepts the signatures of Sign, and Verify accepts its own.
func TestStandardLibrary(t *testing.T) {
	t.Parallel()
	body, now := []byte(`{"type":"job.succeeded"}`), time.Now()
	header := http.Header{}
	require.NoError(t, webhook.Sign(header, body, []string{other, secret}, "cat.1", now))
	for _, s := range []string{secret, other} {
		library, err := standard.NewWebhook(s)
		require.NoError(t, err)
		require.NoError(t, library.Verify(body, header))

		signed, err := library.Sign("cat.1", now, body)
		require.NoError(t, err)
		header := http.Header{}
		header.Set(standard.HeaderWebhookID, "cat.1")
		header.Set(standard.HeaderWebhookTimestamp, webhookTime(now))
		header.Set(standard.HeaderWebhookSignature, "v1a,AAAA "+signed)
		require.NoError(t, webhook.Verify(header, body, []string{secret, other}, now))
	}
}

func webhookTime(at time.Time) string {
	header := http.Header{}
	_ = webhook.Sign(header, nil, []string{secret}, "any", at)
	return header.Get(webhook.HeaderTimestamp)
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	sign := func() http.Header {
		header := http.Header{}
		require.NoError(t, webhook.Sign(header, []byte("body"), []string{secret}, "cat.1", now))
		return header
	}
	require.NoError(t, webhook.Verify(sign(), []byte("body"), []string{other, secret}, now.Add(webhook.Tolerance)))
	for name, c := range map[string]struct {
		change  func(http.Header)
		body    string
		secrets []string
		after   time.Duration
		want    error
	}{
		"no ID":              {change: func(h http.Header) { h.Del(webhook.HeaderID) }, want: webhook.ErrUnsigned},
		"no timestamp":       {change: func(h http.Header) { h.Del(webhook.HeaderTimestamp) }, want: webhook.ErrUnsigned},
		"malformed time":     {change: func(h http.Header) { h.Set(webhook.HeaderTimestamp, "now") }, want: webhook.ErrUnsigned},
		"no signature":       {change: func(h http.Header) { h.Del(webhook.HeaderSignature) }, want: webhook.ErrUnsigned},
		"another ID":         {change: func(h http.Header) { h.Set(webhook.HeaderID, "dog.1") }, want: webhook.ErrSignature},
		"another time":       {change: func(h http.Header) { h.Set(webhook.HeaderTimestamp, "1767323046") }, want: webhook.ErrSignature},
		"another signature":  {change: func(h http.Header) { h.Set(webhook.HeaderSignature, "v1,AAAA") }, want: webhook.ErrSignature},
		"a time of overflow": {change: func(h http.Header) { h.Set(webhook.HeaderTimestamp, "9223372036854775807") }, want: webhook.ErrTimestamp},
		"another body":       {body: "BODY", want: webhook.ErrSignature},
		"another secret":     {secrets: []string{other}, want: webhook.ErrSignature},
		"too old":            {after: webhook.Tolerance + time.Second, want: webhook.ErrTimestamp},
		"from the future":    {after: -webhook.Tolerance - time.Second, want: webhook.ErrTimestamp},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			header, body, secrets := sign(), "body", []string{secret}
			if c.change != nil {
				c.change(header)
			}
			if c.body != "" {
				body = c.body
			}
			if c.secrets != nil {
				secrets = c.secrets
			}
			require.ErrorIs(t, webhook.Verify(header, []byte(body), secrets, now.Add(c.after)), c.want)
		})
	}
	require.ErrorIs(t, webhook.Verify(sign(), []byte("body"), nil, now), webhook.ErrSignature)
	require.ErrorContains(t, webhook.Verify(sign(), []byte("body"), []string{"whsec_"}, now), "must be whsec_")
}

// A secret is never in an error.
func TestValidSecret(t *testing.T) {
	t.Parallel()
	for _, size := range []int{24, 32, 64} {
		require.NoError(t, webhook.ValidSecret("whsec_"+base64.StdEncoding.EncodeToString(make([]byte, size))))
	}
	for _, invalid := range []string{"", "whsec_", "hush", strings.TrimPrefix(secret, "whsec_"), "whsec_hush!", "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 23)), "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 65))} {
		err := webhook.ValidSecret(invalid)
		require.ErrorContains(t, err, "must be whsec_", invalid)
		assert.NotContains(t, err.Error(), "hush")
		require.ErrorContains(t, webhook.Sign(http.Header{}, nil, []string{invalid}, "cat.1", time.Now()), "must be whsec_")
	}
	require.ErrorContains(t, webhook.Sign(http.Header{}, nil, nil, "cat.1", time.Now()), "no secret")
}
