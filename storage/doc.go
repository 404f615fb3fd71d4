// Package storage keeps images, sidecars and staged references in one bucket of
// an S3-compatible store.
//
// An image's path is: source, spool, proof, one PutObject, HEAD. [Spool.Fetch]
// copies the source into a file, hashing on the way, and proves it: its length,
// the digests that the source names, and a walk over the PNG's chunks to their
// end. Only a [File] that it returns can be given to [Bucket.PutImage], which
// sends the bytes with both digests that stores verify, and looks afterwards
// whether they are there. Nothing reaches the bucket before it is proven, and
// memory does not grow with the image. [Bucket.PutSidecar] comes last: a job
// that has a sidecar is over.
//
//	PREFIX/JOB_ID/JOB_ID-N.png    images, by the key template
//	PREFIX/_jobs/JOB_ID.json      sidecars
//	PREFIX/_refs/SHA256           staged reference images
//	PREFIX/_held/TASK_ID/NAME     what a person must still claim
//
// The package retries what the S3 SDK retries, and nothing else: whether and
// when to try again is the caller's to decide.
package storage
