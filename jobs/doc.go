// Package jobs is what a producer of images needs: what can be asked for
// ([Request], the model catalogue, validation), what a job is called (IDs and
// digests), files of many requests ([ReadBatch]), and the queue ([Client]):
// enqueue, look, wait, listen, cancel. A producer that does not want to wait is told of
// the end by a callback or a message of its own ([Event]). What workers reserve and spend is in the ledger
// ([Client.Reserve], [Client.Settle], [Client.Spending]).
//
// A request is checked whole before anything is queued: [Request.Normalize]
// names every field that the service would refuse, with its value and what is
// allowed, because DashScope itself reports a wrong size only after the task
// has waited its turn.
//
// # Digest
//
// [Request.Digest] is the SHA-256, in lower-case hex, of these bytes:
//
//	danqing/request/1 LF
//	NAME = LENGTH : VALUE LF      for each field that has a value
//
// without the spaces shown. The fields come in this order: model, prompt,
// negative_prompt, style, size, n, seed, ref_img, ref_strength, ref_mode,
// prompt_extend, watermark. LENGTH counts the bytes of VALUE in decimal; text is
// UTF-8 as given; whole numbers are decimal; ref_strength is the shortest
// decimal without an exponent that reads back as the same float64 (0, 0.7, 1);
// switches are true or false. The model goes by its name in the catalogue, not
// by a region's spelling. Defaults are written out (model, size, n; style,
// prompt_extend=true and watermark=false where the model has them; ref_mode
// where there is a reference), so that a default that is spelt out and one that
// is left out are the same request. A seed is written only if the request gives
// one. For example:
//
//	danqing/request/1
//	model=7:wanx-v1
//	prompt=24:有一只黑色的小猫
//	style=6:<auto>
//	size=9:1024*1024
//	n=1:1
//
// and, of a model without styles:
//
//	danqing/request/1
//	model=16:wan2.2-t2i-flash
//	prompt=24:有一只黑色的小猫
//	size=9:1024*1024
//	n=1:1
//	prompt_extend=4:true
//	watermark=5:false
//
// The ID, labels, priority, redo_of, the batch and all that says when the job is wanted
// and who is told of it take no part. This form is
// fixed for ever: the permanent records of finished jobs bear digests. A field
// that a later model brings is added to the end of the list and written only
// where the model has it.
//
// # Seed
//
// Where none is given, [Request.WithSeed] derives it from the job ID: the first
// eight bytes of SHA-256("danqing/seed/1" LF ID), big-endian, modulo the number
// of seeds that leave room for all n images.
package jobs
