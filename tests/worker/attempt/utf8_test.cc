#include "worker/attempt/utf8.h"

#include <gtest/gtest.h>

namespace longhaul::attempt {
namespace {

TEST(Utf8Test, KeepsTextAndReplacesTheRest) {
  const std::string text = "plain caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80";
  EXPECT_EQ(ToUtf8(text), text);
  EXPECT_EQ(ToUtf8(std::string("a\0b", 3)), "a?b");
  EXPECT_EQ(ToUtf8("\xf5\x80\x80\x80"), "????");  // past U+10FFFF
  EXPECT_EQ(ToUtf8("\xf4\x90\x80\x80"), "????");  // the same, in a legal lead byte
  EXPECT_EQ(ToUtf8("\xc3"), "?");                 // cut off
  EXPECT_EQ(ToUtf8("\xe0\x80\xaf"), "???");       // overlong
}

TEST(Utf8Test, CutsBetweenCharacters) {
  const std::string text = "a\xc3\xa9\xe2\x82\xac";
  EXPECT_EQ(CutUtf8(text, 100), text);
  EXPECT_EQ(CutUtf8(text, 5), "a\xc3\xa9");
  EXPECT_EQ(CutUtf8(text, 2), "a");
  EXPECT_EQ(CutUtf8(text, 0), "");
  EXPECT_EQ(CutUtf8("\x80\x80\x80", 2), "");
}

}  // namespace
}  // namespace longhaul::attempt
