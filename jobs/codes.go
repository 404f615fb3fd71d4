package jobs

// The codes of Danqing in a record: of a job, of one of its images, or of a past
// attempt. Every other code there is DashScope's own; its error-code page explains it,
// and the message beside it repeats what to do.
//
// docs/codes.md is made from the comments below: what happened, what it cost, what to
// do.

// Codes of held jobs. It is unknown what was paid for, or a budget is spent: an operator
// decides, with danqing jobs resolve.
const (
	// CodeSubmitAmbiguous means that the reply to a create was lost, and the account's
	// task list does not settle which task is the job's: another program uses the same
	// key, several replies were lost at about the same time, three of the job's were
	// lost in a row, the key has never created a task, or the list is not known to show
	// the model's tasks. While the job is submitting,
	// the list is still being searched.
	//
	// Cost: unknown; one task at most.
	//
	// Do: danqing jobs show names the tasks that may be the job's; their images are
	// under _held/TASK/ in the bucket. If it is one of them, --adopt TASK; if it is
	// none, --buy-again.
	CodeSubmitAmbiguous = "SubmitAmbiguous"
	// CodeOrphanedTask means that Redis or a journal lost data, and the account has a task
	// that belongs to no known job, or the spool an image. It may be this job's.
	//
	// Cost: unknown; one task at most.
	//
	// Do: as for SubmitAmbiguous.
	CodeOrphanedTask = "OrphanedTask"
	// CodeBudgetExceeded means that the budget of the job's batch has no room for it.
	//
	// Cost: nothing.
	//
	// Do: run the batch again with a larger --budget, or with none.
	CodeBudgetExceeded = "BudgetExceeded"
	// CodeTaskUnknown means that DashScope does not find the job's task, because it is
	// more than 24 hours old, or the key now belongs to another account.
	//
	// Cost: paid if the task succeeded.
	//
	// Do: if the key was changed to another account's, restore it and --adopt TASK.
	// Otherwise --buy-again or --give-up.
	CodeTaskUnknown = "TaskUnknown"
	// CodeNoImages means that the task succeeded, and its answer names no image.
	//
	// Cost: paid, as far as is known.
	//
	// Do: --adopt with the job's own task asks DashScope again; otherwise --buy-again
	// or --give-up.
	CodeNoImages = "NoImages"
	// CodeImageUnverified means that an image is not a whole PNG, JPEG or WebP, or its link
	// leads to a host that is not trusted, or it could not be fetched or stored for a week
	// after its link expired. The bytes that came are under _held/ in the bucket; the
	// job's other images are stored.
	//
	// Cost: paid.
	//
	// Do: inspect the bytes. Remove the cause that the message names and, within 24
	// hours of the task's end, --adopt with the job's own task; or --buy-again, which
	// buys that image alone.
	CodeImageUnverified = "ImageUnverified"
	// CodeSpoolUnavailable means that the image is in the spool of a worker that has
	// been gone since before the link expired. The job is held after a week; until
	// then it is storing.
	//
	// Cost: paid.
	//
	// Do: start a worker on the data directory that the message names; it delivers the
	// image. If the job is held by then, --adopt with the job's own task.
	CodeSpoolUnavailable = "SpoolUnavailable"
	// CodeRecordRefused means that Redis refuses what must be recorded of the job: one of
	// its keys has another type, or the record is too large. The images of its task, if it
	// has one, are under _held/TASK/ in the bucket.
	//
	// Cost: paid if it has a task that succeeded.
	//
	// Do: rename or delete the key that the message is about, then --adopt with the job's
	// own task if it has one, otherwise --buy-again.
	CodeRecordRefused = "RecordRefused"
)

// Codes of failed jobs. danqing jobs retry enqueues them again, if that can help.
const (
	// CodeAbandoned means that an operator gave up a held job, or the images that it
	// lacked.
	//
	// Cost: what its task cost, if there was one.
	//
	// Do: nothing. A retry may pay a second time.
	CodeAbandoned = "Abandoned"
	// CodeDeadlineExceeded means that the job was not submitted before its deadline.
	//
	// Cost: nothing.
	//
	// Do: danqing jobs retry enqueues it without a deadline.
	CodeDeadlineExceeded = "DeadlineExceeded"
	// CodeModelNotInRegion means that the model is not offered in the region of the
	// account's base URL.
	//
	// Cost: nothing.
	//
	// Do: choose a model of that region, or an account of another region.
	CodeModelNotInRegion = "ModelNotInRegion"
	// CodeRequestRefused means that the request is not valid for the worker that drew it,
	// whose catalog of models is not that of the producer.
	//
	// Cost: nothing.
	//
	// Do: give all processes the same DANQING_MODEL_CATALOG, then danqing jobs retry.
	CodeRequestRefused = "RequestRefused"
	// CodeReferenceMissing means that the staged reference image is not in the bucket.
	//
	// Cost: nothing.
	//
	// Do: stage it again, and enqueue the job under a new ID.
	CodeReferenceMissing = "ReferenceMissing"
	// CodeReferenceRejected means that DashScope's temporary store does not accept the
	// reference image. The job is retrying for a day, and then fails.
	//
	// Cost: nothing.
	//
	// Do: try the image in DashScope's console, or another image under a new ID.
	CodeReferenceRejected = "ReferenceRejected"
	// CodeJobIDTaken means that the ID belongs to a job with another request, or to a
	// simulated one.
	//
	// Cost: nothing.
	//
	// Do: enqueue the request under a new ID.
	CodeJobIDTaken = "JobIDTaken"
	// CodeSidecarUnreadable means that the bucket has a sidecar for this ID that
	// cannot be read: it is corrupt, or was written by another program.
	//
	// Cost: nothing now; the earlier job may have been paid for.
	//
	// Do: inspect _jobs/ID.json in the bucket. Restore it, or move it elsewhere and
	// retry the job.
	CodeSidecarUnreadable = "SidecarUnreadable"
	// CodeRecordCorrupt means that the job's record in Redis cannot be read: another
	// program has written it. Nothing is done for the job. The code is in the
	// archived message and in the answers of the HTTP API.
	//
	// Cost: unknown; what was paid for is in the worker's journal and in the bucket.
	//
	// Do: delete the key danqing:job:ID and enqueue the job again.
	CodeRecordCorrupt = "RecordCorrupt"
)

// Codes of canceled jobs. They have no paid task.
const (
	// CodeCanceled means that the job was canceled on request before DashScope started
	// it.
	//
	// Cost: nothing.
	//
	// Do: nothing; danqing jobs retry queues it again.
	CodeCanceled = "Canceled"
	// CodeArchived means that the job's message was archived in the queue, by an
	// operator in the web UI, before anything was bought.
	//
	// Cost: nothing.
	//
	// Do: run the message in the web UI, or retry the job.
	CodeArchived = "Archived"
	// CodeMessageLost means that the job's message, and with it the request, is gone
	// from the queue.
	//
	// Cost: nothing.
	//
	// Do: enqueue the job again; its ID is free.
	CodeMessageLost = "MessageLost"
)

// Codes of images and past attempts.
const (
	// CodeImageMissing means that the task ended without a result for this image.
	//
	// Cost: nothing; DashScope charges only the images that it names.
	//
	// Do: danqing jobs retry buys the missing images.
	CodeImageMissing = "ImageMissing"
	// CodeResultExpired means that the image's link expired before any worker could
	// copy the image.
	//
	// Cost: paid.
	//
	// Do: danqing jobs retry buys it again.
	CodeResultExpired = "ResultExpired"
	// CodeNotCreated means that the reply to this attempt's create was lost, and the
	// account's task list has no task of it. The job was submitted again.
	//
	// Cost: nothing.
	//
	// Do: nothing.
	CodeNotCreated = "NotCreated"
)
