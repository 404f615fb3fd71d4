package editdistance_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/danqing-queue/danqing/jobs/editdistance"
)

func TestBetween(t *testing.T) {
	t.Parallel()
	for pair, want := range map[[2]string]int{
		{"", ""}: 0, {"", "ab"}: 2, {"ab", "ab"}: 0, {"ab", "ba"}: 1, {"ab", "bc"}: 2, {"ab", "b"}: 1,
		{"猫", "狗"}: 1, {"kitten", "sitting"}: 3, {"promtp", "prompt"}: 1, {"BUKET", "BUCKET"}: 1, {"MODLES", "MODELS"}: 1,
	} {
		assert.Equal(t, want, editdistance.Between(pair[0], pair[1]), pair)
		assert.Equal(t, want, editdistance.Between(pair[1], pair[0]), pair)
	}
}
