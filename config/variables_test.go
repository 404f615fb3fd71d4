package config

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What is read is documented, and what is documented is read.
func TestVariables(t *testing.T) {
	t.Parallel()
	var documented []string
	for _, group := range Variables() {
		for _, v := range group.Variables {
			require.NotEmpty(t, v.Meaning, v.Name)
			if strings.HasPrefix(group.Title, "Read by Go") {
				continue
			}
			documented = append(documented, v.Name)
			if v.Fallback != "" {
				documented = append(documented, v.Fallback)
			}
		}
	}
	var read []string
	record := func(get func(string) string) {
		_, err := Load(func(name string) string {
			read = append(read, name)
			return get(name)
		}, nil)
		require.NoError(t, err)
	}
	env := allVariables()
	record(func(name string) string { return env[name] })
	record(func(string) string { return "" }) // what stands in for others is asked for too
	slices.Sort(read)
	slices.Sort(documented)
	assert.Equal(t, documented, slices.Compact(read))
	assert.Equal(t, documented, slices.Compact(slices.Clone(documented)), "a variable is there twice")
}
