package input

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/traditionalchinese"
	"golang.org/x/text/encoding/unicode"
)

// chinesePrompts are hundreds of prompts: parts that are put together, and the Chinese
// sentences of the documentation.
func chinesePrompts(t *testing.T) []string {
	t.Helper()
	subjects := strings.Fields("一只黑色的小猫 一只白瓷茶杯 穿汉服的少女 雪山下的湖 老街的早餐店 宇航员骑马 一碗红烧牛肉面 玻璃花瓶里的向日葵 机械龙 水墨山水 樱花树下的少年 复古收音机 一杯拿铁咖啡 丹顶鹤 赛博朋克城市夜景 春茶礼盒 敦煌飞天 小熊饼干 露营帐篷 未来主义汽车 竹林里的熊猫 鹦鹉 蝴蝶兰 珐琅彩瓷瓶 榛子蛋糕 麒麟 一双运动鞋 口红套装 T恤上的logo 3D卡通兔子")
	scenes := strings.Split("，商业摄影|，柔和的晨光，浅景深|：窗外下着雨|站在海边，夕阳西下|。背景是纯白色|，“春季新品”四个大字|、写实风格、8K|（俯视角度）|——极简构图|，霓虹灯，雨后的街道|, studio light, 高清|！", "|")
	var list []string
	for _, subject := range subjects {
		list = append(list, subject)
		for _, scene := range scenes {
			list = append(list, subject+scene)
		}
	}
	page, err := os.ReadFile(filepath.Join("..", "docs", "README.zh.md"))
	require.NoError(t, err)
	for line := range strings.Lines(string(page)) {
		if line = strings.TrimSpace(line); strings.ContainsFunc(line, func(r rune) bool { return r >= 0x4e00 && r < 0x9fff }) {
			list = append(list, line)
		}
	}
	require.Greater(t, len(list), 450)
	return list
}

// foreignPrompts are in other languages, none of which is read as Chinese.
func foreignPrompts() []string {
	return []string{
		"un café très chaud sur une table en bois", "crème brûlée", "une forêt enchantée à l'aube", "Ein grüner Wald im Frühling", "Müller", "una niña con sombrero en el jardín",
		"um coração de açúcar, edição de verão", "kot śpiący na książce", "il gatto è nero e dorme sul divano", "Čeština: žlutý kůň u řeky",
		"черная кошка на крыше", "Маленький домик у реки, акварель", "лиса", "чорний кіт спить на вікні", "μια μαύρη γάτα στη στέγη",
		"屋根の上の黒い猫、水彩画", "ねこ", "コーヒーカップ", "지붕 위의 검은 고양이", "แมวดำบนหลังคา", "một con mèo đen trên mái nhà", "قطة سوداء على السطح", "חתול שחור על הגג",
		"屋頂上的黑貓，水彩畫", "臺灣夜市的蚵仔煎", "a cat 😀 on a roof", "🐱", "it’s a “cat” — on a mat…", "Coca-Cola® sign on a warm evening in the city", "ice at −5 °C on a cold window", "काली बिल्ली छत पर",
	}
}

func encode(t *testing.T, e encoding.Encoding, s string) []byte {
	t.Helper()
	b, err := e.NewEncoder().Bytes([]byte(s))
	require.NoError(t, err, s)
	return b
}

func charsetOf(content []byte) (string, error) {
	c, err := text{bytes.NewReader(content), int64(len(content))}.charset()
	return c.name, err
}

// inFiles are files that have one prompt.
func inFiles(prompt string) []string {
	return []string{prompt, prompt + "\n", `{"prompt":"` + prompt + `"}` + "\n", "id,prompt,size\r\nA-1," + prompt + ",1024*1024\r\n"}
}

// An ordinary text in UTF-8 is never refused, nor read as anything else.
func TestUTF8IsNeverRefused(t *testing.T) {
	t.Parallel()
	for _, prompt := range append(chinesePrompts(t), foreignPrompts()...) {
		for _, file := range inFiles(prompt) {
			name, err := charsetOf([]byte(file))
			assert.NoError(t, err, file)
			assert.Equal(t, utf8Name, name, file)
		}
	}
}

// A text in GB18030 is read as such, or refused, and never read as mojibake.
func TestGB18030IsNeverMojibake(t *testing.T) {
	t.Parallel()
	read, refused := 0, 0
	check := func(prompt string) {
		for _, file := range inFiles(prompt) {
			name, err := charsetOf(encode(t, simplifiedchinese.GB18030, file))
			if read++; err != nil {
				refused++
				assert.Contains(t, err.Error(), prompt, "both readings are shown")
				continue
			}
			assert.Equal(t, gbName, name, file)
		}
	}
	for _, prompt := range chinesePrompts(t) {
		check(prompt)
	}
	assert.LessOrEqual(t, refused*100, read, "at most 1 %% of ordinary files are refused: %d of %d", refused, read)

	// All characters whose two bytes are valid UTF-8, and words of them.
	var odd []string
	for lead := byte(0xc2); lead <= 0xdf; lead++ {
		for trail := byte(0xa1); trail <= 0xbf; trail++ {
			s, err := simplifiedchinese.GB18030.NewDecoder().Bytes([]byte{lead, trail})
			require.NoError(t, err)
			odd = append(odd, string(s))
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	word := func() string { return odd[rng.IntN(len(odd))] }
	for i, one := range odd {
		check([]string{one, "a " + one, "logo" + one, one + " logo", "3D" + one, "5" + one}[i%6])
	}
	for range 300 {
		check(word() + word())
		check(word() + word() + word())
	}
}

// Other encodings of Asia and Europe are not read as GB18030.
func TestOtherEncodingsAreRefused(t *testing.T) {
	t.Parallel()
	for prompt, e := range map[string]encoding.Encoding{
		"屋頂上的黑貓，水彩畫，春天的早晨": traditionalchinese.Big5, "一隻黑色的小貓": traditionalchinese.Big5, "我們的茶杯": traditionalchinese.Big5,
		"屋根の上の黒い猫、水彩画": japanese.ShiftJIS, "コーヒーカップ": japanese.ShiftJIS,
		"un café très chaud sur une table, à l'aube": charmap.Windows1252, "Ein grüner Wald im Frühling, schön": charmap.Windows1252,
	} {
		for _, file := range inFiles(prompt) {
			name, err := charsetOf(encode(t, e, file))
			assert.Error(t, err, "%s read as %s", prompt, name)
		}
	}
}

func TestUTF16(t *testing.T) {
	t.Parallel()
	for _, prompt := range append(chinesePrompts(t)[:40], foreignPrompts()...) {
		for _, file := range inFiles(prompt)[1:] {
			for _, e := range []encoding.Encoding{
				unicode.UTF16(unicode.LittleEndian, unicode.UseBOM), unicode.UTF16(unicode.BigEndian, unicode.UseBOM),
				unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM), unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM),
			} {
				content := encode(t, e, file)
				src := text{bytes.NewReader(content), int64(len(content))}
				c, err := src.charset()
				if !assert.NoError(t, err, file) {
					continue
				}
				assert.Equal(t, utf16Name, c.name)
				var got bytes.Buffer
				_, err = got.ReadFrom(c.reader(src.bytes()))
				require.NoError(t, err)
				assert.Equal(t, file, strings.TrimPrefix(got.String(), "\ufeff"))
			}
		}
	}
}

func TestEncodingErrors(t *testing.T) {
	t.Parallel()
	for content, want := range map[string]string{
		"{\"prompt\":\"\xd2\xbb\xd6\xbb\xc3\xa8\"}\n": "it has two readings, and line 1 differs:\n  utf-8:   {\"prompt\":\"һֻè\"}\n  gb18030: {\"prompt\":\"一只猫\"}",
		"a\nb\xff\n":                       "its line 2 is not UTF-8, and its line 2 is not GB18030",
		"\ufeffa\n\xd2\xd2\n":              "it begins as UTF-8, but its line 2 is not",
		"\xff\xfea\x00\n\x00\x00\xd8a\x00": "it begins as UTF-16, but its line 2 is not",
		"\x00\x00\x01\x02":                 "it is no text",
	} {
		_, err := charsetOf([]byte(content))
		assert.ErrorContains(t, err, want)
	}
	require.True(t, utf8.ValidString("\xd2\xbb\xd6\xbb\xc3\xa8"))
}

func TestCharsetNamed(t *testing.T) {
	t.Parallel()
	gb := []byte("{\"prompt\":\"\xd2\xbb\xd6\xbb\xc3\xa8\"}\n")
	src := text{bytes.NewReader(gb), int64(len(gb))}
	for name, want := range map[string]string{"GBK": gbName, "gb2312": gbName, "utf8": utf8Name, "UTF-8": utf8Name} {
		c, err := src.charsetNamed(name)
		require.NoError(t, err)
		assert.Equal(t, want, c.name)
	}
	_, err := src.charsetNamed("latin-1")
	require.ErrorContains(t, err, `--encoding "latin-1" is not known`)
}
