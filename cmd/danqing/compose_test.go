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

// composeFile is what of docker-compose.yml can be wrong for us.
type composeFile struct {
	Services map[string]struct {
		Image string
		Build struct {
			Dockerfile string `yaml:"dockerfile_inline"` //nolint:tagliatelle // the name is Docker's
		}
		Command     any // a text or a list of texts
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

// An image without a tag, or with a moving one, is another program next month.
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

// Redis and the web UI ask for no password: other machines must not reach them.
func TestComposePublishesOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	for name, service := range readCompose(t).Services {
		for _, port := range service.Ports {
			assert.Regexp(t, `^127\.0\.0\.1:\d+:\d+$`, port, name)
		}
	}
}

// A Redis that evicts keys or forgets them in a restart loses jobs.
func TestComposeRedisKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	command := fmt.Sprint(readCompose(t).Services["redis"].Command)
	assert.Contains(t, command, "--appendonly yes")
	assert.Contains(t, command, "--maxmemory-policy noeviction")
}

// The workers read every variable that they are given, find nothing odd in them,
// and keep their journals on volumes of their own.
func TestComposeConfiguresTheWorkers(t *testing.T) {
	t.Parallel()
	services := readCompose(t).Services
	reference := regexp.MustCompile(`\$\{\w+:?([-?])([^}]*)\}`)
	for _, name := range []string{"worker", "standby"} {
		service := services[name]
		env := map[string]string{}
		var environ []string
		for variable, value := range service.Environment {
			given := reference.FindStringSubmatch(value)
			switch {
			case given != nil && given[1] == "?":
				value = "sk-given"
			case given != nil:
				value = given[2]
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

// The file of accounts is where the worker's command says, and Docker's mode of
// the keys beside it is no reason for a warning.
func TestComposeMountsTheAccounts(t *testing.T) {
	t.Parallel()
	worker := readCompose(t).Services["worker"]
	path := regexp.MustCompile(`--config (\S+)/accounts\.yaml}`).FindStringSubmatch(fmt.Sprint(worker.Command))
	require.NotNil(t, path, worker.Command)
	assert.Contains(t, worker.Volumes, "${DANQING_ACCOUNTS:-/dev/null}:"+path[1]+":ro")
	assert.Regexp(t, "^/run/secrets/", path[1])
}

// The image is built from the source and nothing that lies beside it.
func TestDockerBuildContext(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, ".dockerignore"))
	require.NoError(t, err)
	want := []string{"*", "!go.mod", "!go.sum"}
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
