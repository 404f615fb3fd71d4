package config

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Receivers are counted once, and errors say which one is wrong without its token.
func TestAlerts(t *testing.T) {
	t.Parallel()
	const robot = "https://oapi.dingtalk.com/robot/send?access_token=hunter2"
	cfg, err := load(map[string]string{"DANQING_ALERT_URL": robot + "#SEChunter2,\n " + robot + " slack+http://relay:8080/hunter2"})
	require.NoError(t, err)
	assert.Equal(t, "[dingtalk at oapi.dingtalk.com slack at relay:8080]", fmt.Sprint(cfg.Alerts))
	_, err = load(map[string]string{"DANQING_ALERT_URL": robot + ",https://ops.example.com/hunter2", "DANQING_ALERT_LANGUAGE": "fr"})
	require.ErrorContains(t, err, "DANQING_ALERT_URL URL 2: it is none of the chat services, and needs a secret")
	require.ErrorContains(t, err, `DANQING_ALERT_LANGUAGE "fr": must be en or zh`)
	assert.NotContains(t, err.Error(), "hunter2")
}
