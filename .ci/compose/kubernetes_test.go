package compose

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// The example for Kubernetes has no field that Kubernetes does not know, and its parts fit.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../cmd/danqing/examples/kubernetes.yaml")
	require.NoError(t, err)
	scheme := runtime.NewScheme()
	require.NoError(t, apps.AddToScheme(scheme))
	require.NoError(t, core.AddToScheme(scheme))
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	names, pods := map[string]bool{}, map[string]core.PodTemplateSpec{}
	for documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		object, _, err := decoder.Decode(document, nil, nil)
		require.NoError(t, err)
		switch o := object.(type) {
		case *core.Secret:
			names["secret "+o.Name] = true
		case *core.ConfigMap:
			names["configuration "+o.Name] = true
		case *apps.StatefulSet:
			assert.Equal(t, o.Spec.Selector.MatchLabels, o.Spec.Template.Labels)
			assert.Equal(t, "data", o.Spec.VolumeClaimTemplates[0].Name)
			pods[o.Name] = o.Spec.Template
		case *apps.Deployment:
			assert.Equal(t, o.Spec.Selector.MatchLabels, o.Spec.Template.Labels)
			pods[o.Name] = o.Spec.Template
		}
	}
	require.Len(t, pods, 2)
	for name, pod := range pods {
		require.Len(t, pod.Spec.Containers, 1, name)
		container := pod.Spec.Containers[0]
		assert.True(t, *pod.Spec.SecurityContext.RunAsNonRoot, name)
		assert.True(t, *container.SecurityContext.ReadOnlyRootFilesystem, name)
		for _, from := range container.EnvFrom {
			if from.SecretRef != nil {
				assert.Contains(t, names, "secret "+from.SecretRef.Name, name)
				assert.False(t, name == "danqing-serve" && from.SecretRef.Name == "danqing-dashscope", "it needs no key")
			} else {
				assert.Contains(t, names, "configuration "+from.ConfigMapRef.Name, name)
			}
		}
	}
}
