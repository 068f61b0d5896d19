//! Time as logs have it.

/// Bytes of a time: `2016-10-06T00:17:09.669794202Z`.
pub const TIME: usize = 30;

/// The last second that four digits of a year can say.
const LAST_SECOND: u64 = 253_402_300_799;

/// RFC 3339 in UTC with nine digits of a second, as kubelet's `RFC3339NanoFixed`; `seconds` since
/// 1970, without leap seconds (time(2)).
pub fn rfc3339(seconds: u64, nanoseconds: u32) -> [u8; TIME] {
    let seconds = seconds.min(LAST_SECOND);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    for (begin, end, number) in [
        (0, 4, year),
        (5, 7, month),
        (8, 10, day),
        (11, 13, second / 3600),
        (14, 16, second / 60 % 60),
        (17, 19, second % 60),
        (20, 29, u64::from(nanoseconds % 1_000_000_000)),
    ] {
        let mut rest = number;
        for digit in text
            .get_mut(begin..end)
            .unwrap_or_default()
            .iter_mut()
            .rev()
        {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
    text
}

/// Year, month and day of a day after 1970-01-01: years begin in March, so that a leap day is the
/// last of its year, and repeat after 400 (days 146 097).
fn date(days: u64) -> (u64, u64, u64) {
    // 0000-03-01 is 719 468 days before 1970-01-01.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March on have 31, 30, 31, 30, 31 days, again and again: 153 in five.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year_of_era + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::String;

    fn text(seconds: u64, nanoseconds: u32) -> String {
        String::from_utf8(rfc3339(seconds, nanoseconds).to_vec()).unwrap()
    }

    #[test]
    fn times_are_those_of_date_1() {
        for (seconds, nanoseconds, told) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 999_999_999, "2000-02-28T23:59:59.999999999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (951_868_800, 0, "2000-03-01T00:00:00.000000000Z"),
            (1_475_713_029, 669_794_202, "2016-10-06T00:17:09.669794202Z"),
            (1_709_164_800, 0, "2024-02-29T00:00:00.000000000Z"),
            (1_740_700_799, 0, "2025-02-27T23:59:59.000000000Z"),
            (1_740_787_200, 0, "2025-03-01T00:00:00.000000000Z"),
            (1_767_225_599, 0, "2025-12-31T23:59:59.000000000Z"),
            (4_107_542_399, 0, "2100-02-28T23:59:59.000000000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
            (253_402_300_799, 0, "9999-12-31T23:59:59.000000000Z"),
            (u64::MAX, 0, "9999-12-31T23:59:59.000000000Z"),
        ] {
            assert_eq!(text(seconds, nanoseconds), told, "{seconds}");
        }
    }

    proptest! {
        #[test]
        fn a_later_time_is_a_later_text(a in 0..LAST_SECOND, b in 0..LAST_SECOND, nanos in 0..1_000_000_000u32) {
            prop_assert_eq!(a.cmp(&b), text(a, nanos).cmp(&text(b, nanos)));
        }

        #[test]
        fn days_follow_each_other(day in 0..2_900_000u64) {
            let (year, month, of_month) = date(day);
            let next = date(day + 1);
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month { 2 if leap => 29, 2 => 28, 4 | 6 | 9 | 11 => 30, _ => 31 };
            let expected = match (of_month < length, month < 12) {
                (true, _) => (year, month, of_month + 1),
                (false, true) => (year, month + 1, 1),
                (false, false) => (year + 1, 1, 1),
            };
            prop_assert_eq!(next, expected);
        }
    }
}
