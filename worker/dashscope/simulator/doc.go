// Package simulator is a simulated DashScope over HTTP, for tests, demonstrations and
// continuous integration: it needs no key, costs nothing, and answers as the
// published pages of the service say, except that every answer carries
// [dashscope.HeaderSimulated].
//
// The base URL is http://HOST/api/v1. A [Simulator] is an [http.Handler]; with
// [Simulator.DialContext] as the dialer of an [http.Transport] it is used
// without a socket, inside a testing/synctest bubble too. It reads the clock
// with [time.Now] and runs nothing in the background: the state of a task at a time
// follows from what was recorded and that time.
//
// # What is modeled
//
// From Alibaba's pages, by their names under help.aliyun.com/zh/model-studio:
//
//   - Create (text-to-image-api-reference, text-to-image-v2-api-reference,
//     qwen-image-api): every model of text2image/image-synthesis with its fields,
//     n 4 if absent (Qwen-Image: 1 and no other), a wrong n or a missing prompt
//     rejected at once, a wrong size accepted and the task FAILED; 403 without
//     X-DashScope-Async; 400 InvalidParameter for an unavailable model, which
//     error-code describes in two ways (it also lists a 404 ModelNotFound, which
//     uploads return here). A wrong style, seed, ref_strength or ref_mode is
//     assumed to end like a wrong size. Options that a model lacks are ignored.
//   - prompt_extend and watermark (the same references): the prompt is rewritten
//     unless prompt_extend is false, by a fixed rule here; the watermark is drawn
//     only if watermark is true: AI生成, or Qwen-Image, as third parties report
//     that model's.
//   - Regions (model-pricing, rate-limit): the models of Beijing and those of
//     Singapore, in each one's spelling and at its prices; see Simulator.Region.
//   - Query: all states but SUSPENDED, times in UTC+8, partial results, UNKNOWN
//     with HTTP 200 for tasks of other accounts or older than 24 h. The
//     results of wanx-v1 carry only a URL, those of the others orig_prompt too,
//     and actual_prompt where it was rewritten.
//   - Cancel and list (manage-asynchronous-tasks): only PENDING tasks can be
//     canceled; the list is the account's, without prompts, times in epoch
//     milliseconds. Its order (newest first), its largest page (100), the zone
//     of its filters (UTC+8) and the answer to a cancel of an unknown task (as
//     to one that is not PENDING) are assumed.
//   - Uploads (get-temporary-file-url): a credential for 300 s, OSS's form POST
//     with its checks, oss:// names that live 48 h, belong to one account and
//     model, and are resolved only with X-DashScope-OssResourceResolve.
//   - Results: OSS links signed with version 1, dead after 24 h with OSS's 403,
//     rejected together with an Authorization header (general behavior of OSS);
//     Range, ETag, Content-MD5, x-oss-hash-crc64ecma. A query always returns
//     the same link. Their lifetime is counted from the end of the task; the page
//     does not say from when.
//   - Limits (rate-limit), counted by account and model: the model's creates a
//     second, as a sliding window, then 429 Throttling.RateQuota; the model's
//     tasks RUNNING at once, the rest PENDING in order. By account: 20 queries,
//     lists and cancels a second, then 429 Throttling. The pages give each of
//     the three 20; here they share them, the stricter reading. A rejected
//     request is not counted.
//   - Times: 25 ms from create to start, and for wanx-v1 about 27 s of work, as in
//     the two answers that the reference shows; for the others 5.7 to 23.9 s and 3
//     to 4 s for rewriting, after the few published samples. A task without a
//     result after 3 h is FAILED with InternalError.Timeout (error-code).
//   - Costs (model-pricing): created images, and nothing else, at the price of the
//     model in the region, exact to the micro-yuan.
//   - Models and limits (list-models, list-quotas): the region's models with their
//     prices, the account's limits, and the retirement that Simulator.Retire
//     announces. The unit of an image's price and how many tasks may wait (100) are
//     assumed. A retired model is refused with 404 (rate-limit).
//   - Keys: 401 InvalidApiKey for a key that is not in Simulator.Keys or was revoked.
//
// Messages are worded as on the pages, if quoted there.
//
// Other failures are scripted: see [Fault] and the Outcome field of
// [Simulator]. Those of [Troubles] can be had by name, and by words in a prompt.
//
// # What is not modeled
//
//   - Models of other endpoints; synchronous calls.
//   - Moderation, arrears, quotas and workspaces. A [Fault] or an
//     Outcome replaces them.
//   - A limit on queued tasks, and 429 because of concurrency: not documented.
//   - References at a URL are not downloaded: a picture drawn from the URL
//     alone replaces them. Uploads keep a copy of at most 512 pixels a side.
//   - Separate hosts of OSS: uploads and results are paths of the same server.
//   - EventBridge, TLS, network latency.
//   - Expiry: tasks stay in memory, about a kilobyte each, so that
//     [Simulator.Tasks] and [Simulator.Stats] cover all of them.
package simulator
