package ledger

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// microPerYuan is a yuan in the unit of all amounts.
const microPerYuan = 1_000_000

// yuanPattern matches amounts below a billion yuan: more is a mistake, and sums stay far
// below the limits of int64 and of integers in Lua.
var yuanPattern = regexp.MustCompile(`^([0-9]{1,9})(?:\.([0-9]{1,6}))?$`)

// ParseYuan returns an amount of yuan, a decimal number with up to six decimals, in
// millionths of a yuan, exactly. The error repeats the text and says what is allowed.
func ParseYuan(text string) (int64, error) {
	parts := yuanPattern.FindStringSubmatch(text)
	if parts == nil {
		return 0, fmt.Errorf("%s: must be an amount of yuan such as 12 or 0.16: digits, with up to six after the point", strconv.Quote(text))
	}
	return strconv.ParseInt(parts[1]+(parts[2] + "000000")[:6], 10, 64)
}

// Sum returns the sum of two amounts that are not negative, or the largest amount if that
// would overflow: a sum never becomes less.
func Sum(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// Times returns a price times a number of images, neither negative, or the largest amount if
// that would overflow.
func Times(price int64, images int) int64 {
	if images > 0 && price > math.MaxInt64/int64(images) {
		return math.MaxInt64
	}
	return price * int64(images)
}

// FormatYuan formats millionths of a yuan as yuan, exactly and without trailing zeros:
// 160000 is 0.16.
func FormatYuan(amount int64) string {
	sign := ""
	if amount < 0 {
		sign, amount = "-", -amount
	}
	whole := sign + strconv.FormatInt(amount/microPerYuan, 10)
	if rest := amount % microPerYuan; rest != 0 {
		return whole + "." + strings.TrimRight(fmt.Sprintf("%06d", rest), "0")
	}
	return whole
}
