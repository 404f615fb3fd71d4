package main

import (
	"os"
	"path/filepath"
	"regexp"
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
		Command     []string
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
	require.Contains(t, file.Services, "worker")
	require.Contains(t, file.Services, "redis")
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
	command := strings.Join(readCompose(t).Services["redis"].Command, " ")
	assert.Contains(t, command, "--appendonly yes")
	assert.Contains(t, command, "--maxmemory-policy noeviction")
}

// The worker reads every variable that it is given, finds nothing odd in them, and
// keeps its journal on a volume.
func TestComposeConfiguresTheWorker(t *testing.T) {
	t.Parallel()
	worker := readCompose(t).Services["worker"]
	reference := regexp.MustCompile(`\$\{\w+:([-?])([^}]*)\}`)
	read := map[string]bool{}
	var environ []string
	for name, value := range worker.Environment {
		given := reference.FindStringSubmatch(value)
		switch {
		case given != nil && given[1] == "?":
			value = "sk-given"
		case given != nil:
			value = given[2]
		}
		worker.Environment[name] = value
		environ = append(environ, name+"="+value)
	}
	cfg, err := config.Load(func(name string) string {
		read[name] = true
		return worker.Environment[name]
	}, environ)
	require.NoError(t, err)
	for name := range worker.Environment {
		assert.True(t, read[name], "nobody reads %s", name)
	}
	require.NoError(t, cfg.CheckReal())
	assert.Empty(t, cfg.Warnings)
	assert.True(t, cfg.RedisURL.IsSet())
	assert.NotEmpty(t, cfg.Bucket)
	assert.Contains(t, worker.Volumes, "worker:"+cfg.DataDir)
}
