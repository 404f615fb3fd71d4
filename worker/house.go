package worker

import (
	"context"
)

// keepHouse looks after what no single job does.
func (w *Worker) keepHouse(ctx context.Context) func() { return func() {} }
