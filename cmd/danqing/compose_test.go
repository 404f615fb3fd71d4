package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/danqing-queue/danqing/config"
)

// composeFile has the parts of docker-compose.yml that are tested.
type composeFile struct {
	Services map[string]struct {
		Image string
		Build struct {
			Dockerfile string `yaml:"dockerfile_inline"` //nolint:tagliatelle // Docker's name
		}
		Command     any // a string or a list of strings
		Environment map[string]string
		Ports       []string
		Volumes     []string
	}
}

func readCompose(t *testing.T) composeFile {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	require.NoError(t, err)
	var file composeFile
	require.NoError(t, yaml.Unmarshal(text, &file))
	for _, name := range []string{"redis", "worker", "standby"} {
		require.Contains(t, file.Services, name)
	}
	return file
}

// Images have fixed tags, because others change without notice.
func TestComposePinsImages(t *testing.T) {
	t.Parallel()
	from := regexp.MustCompile(`(?m)^FROM (\S+)`)
	for name, service := range readCompose(t).Services {
		var images []string
		if service.Image != "" {
			images = append(images, service.Image)
		}
		for _, match := range from.FindAllStringSubmatch(service.Build.Dockerfile, -1) {
			images = append(images, match[1])
		}
		assert.NotEmpty(t, images, name)
		for _, image := range images {
			_, tag, _ := strings.Cut(image, ":")
			assert.NotContains(t, []string{"", "latest"}, tag, "%s: tag of %s", name, image)
		}
	}
}

// Redis and the web UI have no password, so other machines must not reach them.
func TestComposePublishesOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	for name, service := range readCompose(t).Services {
		for _, port := range service.Ports {
			assert.Regexp(t, `^127\.0\.0\.1:\d+:\d+$`, port, name)
		}
	}
}

// A Redis that evicts keys, or loses them in a restart, loses jobs.
func TestComposeRedisIsDurable(t *testing.T) {
	t.Parallel()
	command := fmt.Sprint(readCompose(t).Services["redis"].Command)
	assert.Contains(t, command, "--appendonly yes")
	assert.Contains(t, command, "--maxmemory-policy noeviction")
}

// The workers read every variable in the file, without warnings, and have their journals on
// separate volumes.
func TestComposeConfiguresWorkers(t *testing.T) {
	t.Parallel()
	services := readCompose(t).Services
	reference := regexp.MustCompile(`\$\{\w+:-([^}]*)\}`)
	for _, name := range []string{"worker", "standby"} {
		service := services[name]
		env := map[string]string{}
		var environ []string
		for variable, value := range service.Environment {
			if given := reference.FindStringSubmatch(value); given != nil {
				value = given[1]
			}
			if variable == "DASHSCOPE_API_KEY" {
				value = "sk-given"
			}
			env[variable] = value
			environ = append(environ, variable+"="+value)
		}
		read := map[string]bool{}
		cfg, err := config.Load(func(variable string) string {
			read[variable] = true
			return env[variable]
		}, environ)
		require.NoError(t, err)
		for variable := range env {
			assert.True(t, read[variable], "nobody reads %s", variable)
		}
		require.NoError(t, cfg.CheckReal())
		assert.Empty(t, cfg.Warnings)
		assert.True(t, cfg.RedisURL.IsSet())
		assert.NotEmpty(t, cfg.Bucket)
		assert.Contains(t, service.Volumes, name+":"+cfg.DataDir)
	}
}

// The accounts file is mounted at the path in the worker's command, and Docker's mode of
// secrets causes no warning.
func TestComposeMountsAccounts(t *testing.T) {
	t.Parallel()
	worker := readCompose(t).Services["worker"]
	path := regexp.MustCompile(`--config (\S+)/accounts\.yaml}`).FindStringSubmatch(fmt.Sprint(worker.Command))
	require.NotNil(t, path, worker.Command)
	assert.Contains(t, worker.Volumes, "${DANQING_ACCOUNTS:-/dev/null}:"+path[1]+":ro")
	assert.Regexp(t, "^/run/secrets/", path[1])
}

// The build context of the image contains only the source, and which commit it is.
func TestDockerBuildContext(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, ".dockerignore"))
	require.NoError(t, err)
	want := []string{"*", "!go.mod", "!go.sum", "!.git/HEAD", "!.git/packed-refs", "!.git/refs/heads"}
	for pkg := range importMap() {
		folder, _, _ := strings.Cut(pkg, "/")
		if !slices.Contains(want, "!"+folder) {
			want = append(want, "!"+folder)
		}
	}
	var got []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			got = append(got, line)
		}
	}
	require.Equal(t, "*", got[0], "first nothing, then what is needed")
	assert.ElementsMatch(t, want, got)
}
