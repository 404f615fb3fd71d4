package input

import (
	"slices"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// alias is a header that means a field. A weak one does so only if no other column does: it
// may also be a column of a shop's.
type alias struct {
	field string
	weak  bool
}

// aliases are the headers that are read as fields, by their keys. The fields' own names are
// among them. A running number (序号) is none: it changes when a row is inserted, and an id
// must not.
func aliases() map[string]alias {
	list := map[string]alias{}
	for field, headers := range map[string]string{
		"id":              "编号 任务编号 图片编号",
		"prompt":          "prompts positiveprompt 提示词 正向提示词 正面提示词 正提示词 提示语 绘画提示词 画面提示词 图片提示词 生图提示词 中文提示词 英文提示词 咒语",
		"negative_prompt": "negative negprompt 反向提示词 负面提示词 负向提示词 反面提示词 负提示词 反向词 负面词 排除词",
		"model":           "模型 模型名 模型名称",
		"style":           "风格 画风 图片风格 绘画风格 艺术风格",
		"size":            "尺寸 分辨率 resolution 图片尺寸 图像尺寸 画面尺寸 图片分辨率 输出尺寸",
		"n":               "数量 张数 图片数量 图片张数 生成数量 生成张数 出图数量 出图张数",
		"seed":            "种子 随机种子 种子值",
		"ref_img":         "refimage referenceimage reference 参考图 参考图片 参考图像 参考图地址 参考图链接 垫图",
		"ref_images":      "refimgs referenceimages references 多张参考图 参考图列表 待编辑图片",
		"mask_image_url":  "maskimage 蒙版 蒙版图 遮罩图",
		"function":        "编辑功能 编辑方式",
		"ref_mode":        "参考模式 参考方式",
		"ref_strength":    "参考强度 参考程度",
		"prompt_extend":   "提示词改写 智能改写 提示词扩写",
		"watermark":       "水印 加水印",
		"ref_image":       "", "sketch_image_url": "", "priority": "", "redo_of": "", "not_before": "", "deadline": "", "callback": "", "stage": "",
		"prompt_extend_mode": "", "enable_thinking": "", "thinking_mode": "", "enable_sequential": "", "is_sketch": "", "strength": "",
		"upscale_factor": "", "top_scale": "", "bottom_scale": "", "left_scale": "", "right_scale": "",
	} {
		list[headerKey(field)] = alias{field: field}
		for header := range strings.FieldsSeq(headers) {
			list[headerKey(header)] = alias{field: field}
		}
	}
	for field, headers := range map[string]string{
		"prompt": "text caption description 文案 描述 描述词 画面 画面描述 画面内容 图片描述 图片内容 内容 文本 文字 关键词",
		"size":   "大小 图片大小",
	} {
		for header := range strings.FieldsSeq(headers) {
			list[headerKey(header)] = alias{field: field, weak: true}
		}
	}
	return list
}

// fieldNamed returns the field that a header means, or "".
func fieldNamed(header string, known map[string]alias) alias {
	key := headerKey(header)
	if found, ok := known[key]; ok {
		return found
	}
	// A note after the name, as in 提示词(必填).
	if name, note, ok := strings.Cut(strings.TrimSuffix(key, ")"), "("); ok && slices.Contains(headerNotes(), note) {
		return known[name]
	}
	return alias{}
}

// headerNotes are the notes in parentheses that do not change what a header means.
func headerNotes() []string {
	return []string{"必填", "选填", "可选", "非必填", "可空", "required", "optional", "px", "像素", "张", "宽*高", "宽x高", "宽×高", "width*height"}
}

// headerKey is a header without case, blanks, underscores, hyphens, width and marks at its
// end.
func headerKey(header string) string {
	key := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || r == '_' || r == '-' || r == '\ufeff' || r == '\u200b' {
			return -1
		}
		return unicode.ToLower(r)
	}, norm.NFKC.String(header))
	return strings.Trim(key, "*:#")
}
