package dashscope

import (
	"slices"
	"time"
)

// Paths of the service below the base URL, which ends in /api/v1. Each is answered with
// and without a trailing slash (the Model Studio pages and the two official SDKs
// differ).
const (
	PathText2Image = "/services/aigc/text2image/image-synthesis"
	PathTasks      = "/tasks"
	PathUploads    = "/uploads"
	// PathModels is on the list-models page. PathLimits is on the Chinese list-quotas page,
	// PathQuotas on the international one, for the same answer.
	PathModels = "/models"
	PathLimits = "/models/limits"
	PathQuotas = "/quotas"
)

// Request and response headers.
const (
	// HeaderAsync must be "enable" on every create; without it the service
	// answers 403 AccessDenied.
	HeaderAsync = "X-DashScope-Async"
	// HeaderOSSResolve must be "enable" whenever an input is an oss:// name.
	HeaderOSSResolve = "X-DashScope-OssResourceResolve"
	// HeaderWorkspace names a workspace; needed with a RAM sub-account's key.
	HeaderWorkspace = "X-DashScope-WorkSpace"
	// HeaderSimulated is "true" on every answer of the simulator, and on Danqing's own
	// answers about a simulated job, so that a simulated image is never mistaken for a
	// real one.
	HeaderSimulated = "X-Danqing-Simulated"
	// HeaderGateway is set by Danqing's own DashScope-compatible API. A worker that
	// finds it at its base URL must refuse to start: it would submit to itself.
	HeaderGateway = "X-Danqing-Gateway"
)

// Task states (manage-asynchronous-tasks page). SUSPENDED is in both SDKs' enums and on
// no page; as in the SDKs, it is not terminal.
const (
	StatusPending   = "PENDING"
	StatusRunning   = "RUNNING"
	StatusSuspended = "SUSPENDED"
	StatusSucceeded = "SUCCEEDED"
	StatusFailed    = "FAILED"
	StatusCanceled  = "CANCELED"
	// StatusUnknown is answered, with HTTP 200, for a task that never existed
	// or is older than 24 hours.
	StatusUnknown = "UNKNOWN"
)

// TaskLifetime is how long a task can be queried after its creation, and how long a
// result URL is valid (text-to-image API reference).
const TaskLifetime = 24 * time.Hour

// CreateRequest is a create. As JSON it is the body of [ProtocolText2Image] and
// [ProtocolImage2Image]; [CreateRequest.Encode] and [DecodeCreate] have those of all protocols.
type CreateRequest struct {
	// Protocol is the model's; "" means [ProtocolText2Image].
	Protocol   Protocol   `json:"-"`
	Model      string     `json:"model"`
	Input      Input      `json:"input"`
	Parameters Parameters `json:"parameters"`
}

// Input is the prompt and the reference image. RefImg is an http(s) URL or an oss://
// name. The documentation's curl examples spell it ref_image, the parameter table and
// both SDKs ref_img, which is the field that is sent. Old samples use SketchImageURL
// for a local file; if several are set, ref_img wins.
//
// Images are the reference images of a model that takes several. A model with functions takes
// BaseImageURL instead, and MaskImageURL for those that need a mask.
type Input struct {
	Prompt         string `json:"prompt"`
	NegativePrompt string `json:"negative_prompt,omitempty"`
	RefImg         string `json:"ref_img,omitempty"`
	RefImage       string `json:"ref_image,omitempty"`
	SketchImageURL string `json:"sketch_image_url,omitempty"`

	Images       []string `json:"images,omitempty"`
	Function     string   `json:"function,omitempty"`
	BaseImageURL string   `json:"base_image_url,omitempty"`
	MaskImageURL string   `json:"mask_image_url,omitempty"`
}

// References returns the names of all images of the input.
func (in Input) References() []string {
	names := slices.Concat([]string{in.RefImg, in.RefImage, in.SketchImageURL, in.BaseImageURL}, in.Images, []string{in.MaskImageURL})
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}

// Parameters are the options of an image; each model supports some of them
// (text-to-image API references). An absent N means 4 for all models except
// Qwen-Image's, at four times the price of one image; an absent PromptExtend means
// true, an absent Watermark false.
type Parameters struct {
	Style        string   `json:"style,omitempty"`
	Size         string   `json:"size,omitempty"`
	N            *int     `json:"n,omitempty"`
	Seed         *int64   `json:"seed,omitempty"`
	RefStrength  *float64 `json:"ref_strength,omitempty"`
	RefMode      string   `json:"ref_mode,omitempty"`
	PromptExtend *bool    `json:"prompt_extend,omitempty"`
	Watermark    *bool    `json:"watermark,omitempty"`

	PromptExtendMode string   `json:"prompt_extend_mode,omitempty"`
	EnableThinking   *bool    `json:"enable_thinking,omitempty"`
	ThinkingMode     *bool    `json:"thinking_mode,omitempty"`
	EnableSequential *bool    `json:"enable_sequential,omitempty"`
	Strength         *float64 `json:"strength,omitempty"`
	UpscaleFactor    *float64 `json:"upscale_factor,omitempty"`
	TopScale         *float64 `json:"top_scale,omitempty"`
	BottomScale      *float64 `json:"bottom_scale,omitempty"`
	LeftScale        *float64 `json:"left_scale,omitempty"`
	RightScale       *float64 `json:"right_scale,omitempty"`
	IsSketch         *bool    `json:"is_sketch,omitempty"`
}

// TaskResponse answers a create and a query.
type TaskResponse struct {
	RequestID string     `json:"request_id,omitempty"`
	Output    TaskOutput `json:"output"`
	Usage     *Usage     `json:"usage,omitempty"`
}

// TaskOutput is a task as returned by a query. Only TaskID and TaskStatus are always
// present. Code and Message are set on FAILED tasks; the HTTP status of such an answer
// is 200. Times are "2006-01-02 15:04:05.000" in UTC+8. The images of
// [ProtocolImageGeneration] are in Choices; [Client.Query] returns them as Results.
type TaskOutput struct {
	TaskID        string       `json:"task_id"`
	TaskStatus    string       `json:"task_status"`
	SubmitTime    string       `json:"submit_time,omitempty"`
	ScheduledTime string       `json:"scheduled_time,omitempty"`
	EndTime       string       `json:"end_time,omitempty"`
	Results       []Result     `json:"results,omitempty"`
	Finished      *bool        `json:"finished,omitempty"`
	Choices       []Choice     `json:"choices,omitempty"`
	TaskMetrics   *TaskMetrics `json:"task_metrics,omitempty"`
	Code          string       `json:"code,omitempty"`
	Message       string       `json:"message,omitempty"`
}

// Result is one image: a URL, or the code and message of its failure. A task with at
// least one URL is SUCCEEDED.
type Result struct {
	URL          string `json:"url,omitempty"`
	OrigPrompt   string `json:"orig_prompt,omitempty"`
	ActualPrompt string `json:"actual_prompt,omitempty"`
	Code         string `json:"code,omitempty"`
	Message      string `json:"message,omitempty"`
}

// TaskMetrics counts a task's images.
type TaskMetrics struct {
	Total     int `json:"TOTAL"`     //nolint:tagliatelle // DashScope's spelling
	Succeeded int `json:"SUCCEEDED"` //nolint:tagliatelle // DashScope's spelling
	Failed    int `json:"FAILED"`    //nolint:tagliatelle // DashScope's spelling
}

// Usage is what is charged for: successful images only. Qwen-Image 3.0 counts them as
// OutputImageCount, and says of which price they are and how many input images were charged.
type Usage struct {
	ImageCount       int    `json:"image_count,omitempty"`
	OutputImageCount int    `json:"output_image_count,omitempty"`
	OutputImageType  string `json:"output_image_type,omitempty"`
	InputImageCount  *int   `json:"input_image_count,omitempty"` // nil if it is not said
	// Size is that of the images of [ProtocolImageGeneration], as in "1024*1024". It is not read,
	// and may have any type, so that an answer of another shape hides no image.
	Size any `json:"size,omitempty"`
}

// ListResponse answers a list. It has no output object.
type ListResponse struct {
	Total     int        `json:"total"`
	TotalPage int        `json:"total_page"`
	PageNo    int        `json:"page_no"`
	PageSize  int        `json:"page_size"`
	RequestID string     `json:"request_id,omitempty"`
	Data      []TaskInfo `json:"data"`
}

// TaskInfo is a task as returned by a list: without prompt and results. RequestID is
// the create's. Times are Unix milliseconds, zero until reached.
type TaskInfo struct {
	TaskID           string `json:"task_id"`
	Status           string `json:"status"`
	ModelName        string `json:"model_name"`
	Region           string `json:"region,omitempty"`
	APIKeyID         string `json:"api_key_id,omitempty"`
	CallerUID        string `json:"caller_uid,omitempty"`
	CallerParentID   string `json:"caller_parent_id,omitempty"`
	RequestID        string `json:"request_id,omitempty"`
	GmtCreate        int64  `json:"gmt_create"`
	StartTime        int64  `json:"start_time,omitempty"`
	EndTime          int64  `json:"end_time,omitempty"`
	UserAPIUniqueKey string `json:"user_api_unique_key,omitempty"`
}

// ModelsResponse answers a list of models (list-models page). Its other fields are not read.
type ModelsResponse struct {
	RequestID string `json:"request_id,omitempty"`
	Output    struct {
		Total  int            `json:"total"`
		Models []OfferedModel `json:"models"`
	} `json:"output"`
}

// OfferedModel is one model of the list.
type OfferedModel struct {
	Model  string       `json:"model"`
	Prices []PriceRange `json:"prices,omitempty"`
	// InferenceOfflineInfo is absent or null unless the model's retirement is announced.
	InferenceOfflineInfo *OfflineInfo `json:"inference_offline_info,omitempty"`
}

// PriceRange is the prices of one range of use. Their units are not documented for images.
type PriceRange struct {
	RangeName string         `json:"range_name"`
	Prices    []OfferedPrice `json:"prices"`
}

// OfferedPrice is one price, a decimal number as text.
type OfferedPrice struct {
	Type      string `json:"type"`
	Price     string `json:"price"`
	PriceUnit string `json:"price_unit"`
	PriceName string `json:"price_name,omitempty"`
}

// OfflineInfo announces the retirement of a model: "2006-01-02 15:04:05", assumed to be UTC+8 as
// the times of tasks.
type OfflineInfo struct {
	OfflineTime string `json:"offline_time"`
}

// LimitsResponse answers a request for the account's limits (list-quotas page).
type LimitsResponse struct {
	RequestID string `json:"request_id,omitempty"`
	Output    struct {
		Total  int          `json:"total"`
		Quotas []ModelQuota `json:"quotas"`
	} `json:"output"`
}

// ModelQuota is the limits of one model: those of the account, and of the workspace if it has its
// own.
type ModelQuota struct {
	Model          string      `json:"model"`
	ModelLimit     *QuotaLimit `json:"model_limit"`
	WorkspaceLimit *QuotaLimit `json:"workspace_limit"`
}

// QuotaLimit is one set of limits. A field that is null or absent is no limit.
type QuotaLimit struct {
	RequestLimit              *float64 `json:"request_limit"`
	RequestLimitPeriod        *float64 `json:"request_limit_period"` // seconds
	AsyncUserQueueLimit       *float64 `json:"async_user_queue_limit"`
	AsyncUserConcurrencyLimit *float64 `json:"async_user_concurrency_limit"`
}

// PolicyResponse answers a request for an upload credential.
type PolicyResponse struct {
	RequestID string `json:"request_id,omitempty"`
	Data      Policy `json:"data"`
}

// Policy is an upload credential for the temporary store, valid for ExpireInSeconds.
// Uploaded files live 48 hours and belong to the account and model of the credential.
type Policy struct {
	Policy              string `json:"policy"`
	Signature           string `json:"signature"`
	UploadDir           string `json:"upload_dir"`
	UploadHost          string `json:"upload_host"`
	ExpireInSeconds     int    `json:"expire_in_seconds"`
	MaxFileSizeMB       int    `json:"max_file_size_mb"`
	CapacityLimitMB     int    `json:"capacity_limit_mb"`
	OSSAccessKeyID      string `json:"oss_access_key_id"`
	XOSSObjectACL       string `json:"x_oss_object_acl"`
	XOSSForbidOverwrite string `json:"x_oss_forbid_overwrite"`
}

// ErrorResponse is the body of a refusal.
type ErrorResponse struct {
	Code      string `json:"code"`
	Message   string `json:"message"`
	RequestID string `json:"request_id,omitempty"`
}
