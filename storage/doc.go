// Package storage keeps images, sidecars and staged references in one bucket of
// an S3-compatible store.
//
// An image takes these steps: download into the spool, verification, one
// PutObject, HEAD. [Spool.Fetch] downloads the source into a file, hashes it and
// verifies its length, the digests that the source sends, and the parts of the
// PNG, JPEG or WebP up to the last one. [Bucket.PutImage] accepts only a [File] that a spool
// returned. It sends the bytes with both digests that stores verify, and checks
// the stored object afterwards. Nothing reaches the bucket unverified, and memory
// does not grow with the image. [Bucket.PutSidecar] comes last: a job that has a
// sidecar is finished.
//
//	PREFIX/JOB_ID/JOB_ID-N.png    images, by the key template; .jpg and .webp for those formats
//	PREFIX/_jobs/JOB_ID.json      sidecars
//	PREFIX/_refs/SHA256           staged reference images of the operator
//	PREFIX/_refs/@TOKEN/SHA256    those staged over HTTP, see [Owner]
//	PREFIX/_held/TASK_ID/NAME     quarantined images, for an operator to claim
//
// The package retries what the S3 SDK retries, and nothing else. The caller
// decides whether and when to try again.
package storage
