// Package compose loads docker-compose.yml as docker compose itself does. It is a
// module of its own, so that the loader is pinned and nobody who imports Danqing
// gets it. The loader's own command does not follow references.
package compose

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const file = "../../docker-compose.yml"

func read(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(text)
}

// load loads a text in place of the file.
func load(t *testing.T, text string, env types.Mapping, profiles ...string) (*types.Project, error) {
	t.Helper()
	return loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  "../..",
		ConfigFiles: []types.ConfigFile{{Filename: file, Content: []byte(text)}},
		Environment: env,
	}, func(o *loader.Options) {
		o.Profiles = profiles
		o.SetProjectName("danqing", true)
	})
}

func TestOneAccount(t *testing.T) {
	t.Parallel()
	p, err := load(t, read(t), types.Mapping{"DASHSCOPE_API_KEY": "sk-1", "DANQING_MODELS": "wanx-v1,qwen-image"})
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"redis", "s3", "bucket", "image", "configuration", "worker", "serve"}, p.ServiceNames())
	worker := p.Services["worker"]
	assert.Equal(t, types.ShellCommand{"worker"}, worker.Command)
	assert.Equal(t, "sk-1", *worker.Environment["DASHSCOPE_API_KEY"])
	assert.Equal(t, "wanx-v1,qwen-image", *worker.Environment["DANQING_MODELS"])
	assert.Empty(t, *worker.Environment["DANQING_CONCURRENCY"])
}

func TestAccountsFile(t *testing.T) {
	t.Parallel()
	p, err := load(t, read(t), types.Mapping{"DANQING_ACCOUNTS": "/etc/danqing"}, "standby")
	require.NoError(t, err)
	for _, name := range []string{"worker", "standby"} {
		service := p.Services[name]
		assert.Equal(t, types.ShellCommand{"worker", "--config", "/run/secrets/danqing/accounts.yaml"}, service.Command)
		mounts := map[string]string{}
		for _, v := range service.Volumes {
			mounts[v.Target] = v.Source
		}
		assert.Equal(t, map[string]string{"/data": name, "/run/secrets/danqing": "/etc/danqing"}, mounts)
		assert.Equal(t, p.Services["worker"].Environment, service.Environment)
	}
}

// Without a key everything can be read, stopped and simulated. Only workers do not start:
// the service configuration says what is missing and ends.
func TestWithoutAKey(t *testing.T) {
	t.Parallel()
	p, err := load(t, read(t), nil, "*")
	require.NoError(t, err)
	for name, service := range p.Services {
		_, has := service.Environment["DASHSCOPE_API_KEY"]
		assert.Equal(t, slices.Contains([]string{"configuration", "worker", "standby"}, name), has, name)
	}
	for _, name := range []string{"worker", "standby"} {
		assert.Equal(t, types.ServiceConditionCompletedSuccessfully, p.Services[name].DependsOn["configuration"].Condition)
	}
	assert.Equal(t, types.ShellCommand{"doctor", "configuration"}, p.Services["configuration"].Command)
	assert.Equal(t, "no", p.Services["configuration"].Restart)
	for _, name := range []string{"serve", "simulate"} {
		assert.NotContains(t, p.Services[name].DependsOn, "configuration")
	}
}

// The profile monitoring scrapes the services that have metrics, with their token, and every file
// that it mounts is there. Metrics are not published.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	p, err := load(t, read(t), types.Mapping{"DANQING_METRICS_TOKEN": "a token of their own"}, "monitoring", "standby")
	require.NoError(t, err)
	require.Contains(t, p.ServiceNames(), "grafana")
	config, err := os.ReadFile("../../cmd/danqing/monitoring/prometheus.yml")
	require.NoError(t, err)
	for _, name := range []string{"worker", "serve", "standby", "prometheus"} {
		service := p.Services[name]
		assert.Equal(t, "a token of their own", *service.Environment["DANQING_METRICS_TOKEN"], name)
		for _, port := range service.Ports {
			assert.NotEqual(t, uint32(9464), port.Target, name)
		}
		if name != "prometheus" {
			assert.Equal(t, "0.0.0.0:9464", *service.Environment["DANQING_METRICS_LISTEN"], name)
			assert.Regexp(t, `[\["]`+name+`[:\]]`, string(config), name)
		}
	}
	assert.Contains(t, p.Services["prometheus"].Command[0], ">/tmp/token\n")
	assert.Contains(t, string(config), "credentials_file: /tmp/token}")
	assert.Contains(t, string(config), "rule_files: [/etc/prometheus/danqing/alerts.yml]")
	for _, name := range []string{"prometheus", "grafana"} {
		for _, volume := range p.Services[name].Volumes {
			if volume.Type == types.VolumeTypeBind {
				file := volume.Source
				if volume.Target == "/etc/prometheus/danqing" {
					file = filepath.Join(file, "alerts.yml")
				}
				assert.FileExists(t, file)
				assert.True(t, volume.ReadOnly, volume.Source)
			}
		}
	}
}

// The image is built once, and every other image is pinned by its digest. No service has
// rights that it does not need.
func TestServicesAreHardened(t *testing.T) {
	t.Parallel()
	p, err := load(t, read(t), nil, "*")
	require.NoError(t, err)
	pinned := regexp.MustCompile(`:[^@ ]+@sha256:[0-9a-f]{64}$`)
	for name, service := range p.Services {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if service.Image == "danqing:local" {
				assert.Equal(t, name == "image", service.Build != nil, "one service builds it")
			} else {
				assert.Regexp(t, pinned, service.Image)
			}
			assert.True(t, service.ReadOnly)
			assert.Equal(t, []string{"ALL"}, service.CapDrop)
			assert.Equal(t, []string{"no-new-privileges:true"}, service.SecurityOpt)
			assert.NotEmpty(t, service.Logging.Options["max-size"])
			assert.NotEmpty(t, service.Logging.Options["max-file"])
			if service.Restart != "no" {
				assert.NotNil(t, service.HealthCheck)
			}
			for _, port := range service.Ports {
				assert.Equal(t, "127.0.0.1", port.HostIP)
			}
		})
	}
	dockerfile := p.Services["image"].Build.DockerfileInline
	for _, from := range regexp.MustCompile(`(?m)^FROM (\S+)`).FindAllStringSubmatch(dockerfile, -1) {
		assert.Regexp(t, pinned, from[1])
	}
	assert.Contains(t, dockerfile, `-X main.builtFrom=$(git rev-parse --verify HEAD)`, "danqing --version names the commit")
}

// The loader finds a wrong key, a wrong value and each kind of broken reference:
// otherwise the tests above would prove nothing.
func TestLoaderRefuses(t *testing.T) {
	t.Parallel()
	text := read(t)
	for _, c := range []struct{ old, new, want string }{
		{"restart: unless-stopped", "restrat: unless-stopped", "restrat"},
		{"  init: true", "  init: [true]", "init"},
		{"stop_grace_period: 1m", "stop_grace_period: soon", "soon"},
		{"[redis:/data]", "[rdis:/data]", "undefined volume rdis"},
		{"      redis: {condition", "      rdis: {condition", `undefined service "rdis"`},
		{"service_healthy", "service_helthy", "condition"},
		{"127.0.0.1:6379:6379", "127.0.0.1:6379:port", "port"},
		{"<<: *worker", "<<: *wrker", "wrker"},
		{"stop_grace_period: 10s", "networks: [outside]", "undefined network outside"},
		{"stop_grace_period: 10s", "secrets: [accounts]", "undefined secret accounts"},
		{"    image: redis:7.2.16-alpine3.21@sha256:ccd6aa8d45ff3f033d6fa15b8cc1a50579f65c89f38cf9bb607a954c4f2128ed\n", "", "neither an image nor a build context"},
	} {
		require.Contains(t, text, c.old)
		_, err := load(t, strings.ReplaceAll(text, c.old, c.new), types.Mapping{"DASHSCOPE_API_KEY": "sk-1"}, "*")
		assert.ErrorContains(t, err, c.want, c.new)
	}
}
